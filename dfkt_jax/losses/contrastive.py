"""Contrast a query's own key with other keys, from given similarities.

`losses.relation.info_nce` is the special case of a batch against itself.
"""

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.losses.reduce import LOG_ZERO


def contrast(
  similarity: jax.Array,
  own: jax.Array,
  others: jax.Array,
  temperature: float,
  margin: float = 0.0,
) -> jax.Array:
  """Return -log of the softmax share of each query's own key, f32[queries].

  van den Oord et al., "Representation Learning with Contrastive Predictive
  Coding", 2018. `margin` is subtracted from the own similarity first, so that
  it has to win by that much. 0 for a query without a key of its own.

  Args:
    similarity: f32[queries, keys].
    own: bool[queries, keys], at most one True a query.
    others: bool[queries, keys], the query's negatives.
  """
  chex.assert_rank(similarity, 2)
  chex.assert_equal_shape([similarity, own, others])
  odds = (similarity - margin * own) / temperature
  log_p = jax.nn.log_softmax(jnp.where(own | others, odds, LOG_ZERO))
  return -jnp.where(own, log_p, 0.0).sum(1)


def choose_keys(key: jax.Array, among: jax.Array, count: int) -> jax.Array:
  """Choose `count` of the True entries of every row at random.

  All of them where a row has fewer. Returns bool[queries, keys], like `among`.
  """
  chex.assert_rank(among, 2)
  drawn = jnp.where(among, jax.random.uniform(key, among.shape), -1.0)
  _, places = jax.lax.top_k(drawn, min(count, among.shape[1]))
  chosen = jax.nn.one_hot(places, among.shape[1]).sum(1) > 0
  return chosen & among
