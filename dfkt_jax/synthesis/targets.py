"""Class targets for a batch of images."""

import jax
import jax.numpy as jnp

from dfkt_jax import parallel


def balanced(key: jax.Array, batch_size: int, classes: int) -> jax.Array:
  """i32[batch]: every class equally often, to within one, in random order."""
  labels = jnp.arange(batch_size, dtype=jnp.int32) % classes
  # Which classes get the odd one must not always be the first.
  shift_key, order_key = jax.random.split(key)
  shift = jax.random.randint(shift_key, (), 0, classes, jnp.int32)
  labels = (labels + shift) % classes
  return parallel.split(jax.random.permutation(order_key, labels))
