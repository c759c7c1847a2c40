"""Reduce the values of examples to a mean, and the constants shared by losses.

The losses of this package are per example; their caller reduces them, because
only the caller knows which examples count.
"""

import chex
import jax
import jax.numpy as jnp

LOG_ZERO = -1e9  # stands for log 0; finite, so that gradients are finite


def mean(values: jax.Array, weights: jax.Array | None = None) -> jax.Array:
  """Return the weighted mean over the axes of `weights`; 0 where none counts.

  Args:
    values: f32[...].
    weights: bool or f32, 0 or greater, over the leading axes of `values`, which
      are reduced. Values of weight 0 may be non-finite. None: all axes are
      reduced and all values count alike.
  """
  if weights is None:
    return values.mean()
  chex.assert_equal_shape_prefix([values, weights], weights.ndim)
  rows = weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
  values = jnp.where(rows > 0, values, 0.0)
  if weights.dtype != bool:
    values = values * rows
  total = weights.sum()
  axes = tuple(range(weights.ndim))
  return values.sum(axes) / jnp.where(total > 0, total, 1)
