"""A query's own key against others, where similarities are given.

`losses.relation.info_nce` is the special case of a batch against itself.
"""

import jax
import jax.numpy as jnp

from dfkt_jax.losses.information import NEVER


def contrast(
  similarity: jax.Array,
  own: jax.Array,
  others: jax.Array,
  temperature: float,
  margin: float = 0.0,
) -> jax.Array:
  """-log of the softmax share of a query's own key, f32[queries].

  van den Oord et al., "Representation Learning with Contrastive Predictive
  Coding", 2018. `margin` is taken from the own similarity first, so that it has
  to win by that much. 0 for a query without a key of its own.

  Args:
    similarity: f32[queries, keys].
    own: bool[queries, keys], at most one a query.
    others: bool[queries, keys], its negatives.
  """
  odds = (similarity - margin * own) / temperature
  log_p = jax.nn.log_softmax(jnp.where(own | others, odds, NEVER))
  return -jnp.where(own, log_p, 0.0).sum(1)


def choose(key: jax.Array, among: jax.Array, count: int) -> jax.Array:
  """For every row `count` of the True ones at random, bool like `among`.

  All of them where there are fewer.
  """
  drawn = jnp.where(among, jax.random.uniform(key, among.shape), -1.0)
  _, places = jax.lax.top_k(drawn, min(count, among.shape[1]))
  chosen = jax.nn.one_hot(places, among.shape[1]).sum(1) > 0
  return chosen & among
