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


def one_each(decisions: jax.Array, classes: jax.Array) -> jax.Array:
  """i32[n], for each of i32[n] `classes` an index of `decisions` that is it.

  Another one each time while there are such; where there is none at all, the
  index of any other class.
  """
  by_class = jnp.argsort(decisions)
  decided = jnp.sort(decisions)
  first = jnp.searchsorted(decided, classes)
  count = jnp.searchsorted(decided, classes, side="right") - first
  # How often the same class was asked for before, in the order of `classes`.
  place = jnp.argsort(jnp.argsort(classes))
  nth = place - jnp.searchsorted(jnp.sort(classes), classes)
  chosen = first + nth % jnp.maximum(count, 1)
  return by_class[jnp.minimum(chosen, len(decisions) - 1)]
