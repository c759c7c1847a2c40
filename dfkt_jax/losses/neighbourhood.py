"""Neighborhood clustering: each image has a few near ones or many far ones.

Saito et al., "Universal Domain Adaptation through Self Supervision", NeurIPS
2020 (DANCE), its entropy of similarities to all target images.
"""

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.losses.reduce import LOG_ZERO


def neighbourhood_entropy(
  features: jax.Array,
  bank: jax.Array,
  rows: jax.Array,
  valid: jax.Array,
  temperature: float,
) -> jax.Array:
  """Return H(softmax_j(<f_i, v_j> / temperature)) of every image, f32[batch].

  j runs over all images but i. Images of the batch enter with their current
  features, through which the gradient flows; all others with those of the bank.
  The bank stays sharded over its rows.

  Args:
    features: f32[batch, width], of length 1.
    bank: f32[images, width], of length 1.
    rows: i32[batch], the rows of the batch in the bank.
    valid: bool[images]; the others do not count.
  """
  chex.assert_shape(features, (len(rows), bank.shape[-1]))
  chex.assert_shape(bank, (len(valid), None))
  chex.assert_rank([rows, valid], 1)
  numbers = jnp.arange(len(bank))
  absent = valid & (numbers[:, None] != rows[None]).all(1)
  # An image that is in the batch twice is not its own neighbor either.
  apart = rows[:, None] != rows[None]
  similar = lambda keys: features @ keys.T / temperature
  stored = jnp.where(absent[None], similar(bank), LOG_ZERO)
  present = jnp.where(apart, similar(features), LOG_ZERO)
  # Two parts, because one array would have to be gathered over the devices.
  log_sum = jnp.logaddexp(
    jax.nn.logsumexp(stored, axis=1), jax.nn.logsumexp(present, axis=1)
  )
  entropies = log_sum
  for part in (stored, present):
    share = jnp.exp(part - log_sum[:, None])
    # Without any neighbor, shares are not a distribution.
    share = jnp.where(part > LOG_ZERO, share, 0.0)
    logits = jnp.where(part > LOG_ZERO, part, 0.0)
    entropies = entropies - (share * logits).sum(1)
  any_neighbour = absent.any() | apart.any(1)
  return jnp.where(any_neighbour, entropies, 0.0)
