"""Neighbourhood clustering: every image has few near ones, or many far ones.

Saito et al., "Universal Domain Adaptation through Self Supervision", NeurIPS
2020 (DANCE), its entropy of similarities to all target images.
"""

import jax
import jax.numpy as jnp

from dfkt_jax.losses.information import NEVER


def neighbourhood_entropy(
  features: jax.Array,
  bank: jax.Array,
  rows: jax.Array,
  valid: jax.Array,
  temperature: float,
) -> jax.Array:
  """mean_i H(softmax_j(<f_i, v_j> / temperature)), j all images but i.

  Images of the batch are met as they are now, with a gradient, all others as
  the bank has them. The bank stays split over its rows.

  Args:
    features: f32[batch, width], of length 1.
    bank: f32[images, width], likewise.
    rows: i32[batch], the rows of the batch in the bank.
    valid: bool[images]; the others count for nothing.
  """
  numbers = jnp.arange(len(bank))
  absent = valid & (numbers[:, None] != rows[None]).all(1)
  # An image that came twice is not its own neighbour either.
  apart = rows[:, None] != rows[None]
  similar = lambda keys: features @ keys.T / temperature
  stored = jnp.where(absent[None], similar(bank), NEVER)
  present = jnp.where(apart, similar(features), NEVER)
  # Two parts and not one array, which would have to be brought together.
  log_sum = jnp.logaddexp(
    jax.nn.logsumexp(stored, axis=1), jax.nn.logsumexp(present, axis=1)
  )
  entropies = log_sum
  for part in (stored, present):
    share = jnp.exp(part - log_sum[:, None])
    # Where there is nobody at all, shares are no distribution.
    share = jnp.where(part > NEVER, share, 0.0)
    entropies = entropies - (share * jnp.where(part > NEVER, part, 0.0)).sum(1)
  somebody = absent.any() | apart.any(1)
  return jnp.where(somebody, entropies, 0.0).mean()
