"""Class targets for a batch of images."""

import jax
import jax.numpy as jnp

from dfkt_jax import parallel


def balanced(key: jax.Array, batch_size: int, classes: int) -> jax.Array:
  """i32[batch]: every class equally often, to within one, in random order."""
  if batch_size < classes:
    # Any, not neighbours: ImageNet's are sorted by kind, and the statistics of
    # a hundred breeds of dog are not the data's.
    chosen = jax.random.permutation(key, jnp.arange(classes, dtype=jnp.int32))
    return parallel.split(chosen[:batch_size])
  labels = jnp.arange(batch_size, dtype=jnp.int32) % classes
  # Which classes get the odd one must not always be the first.
  shift_key, order_key = jax.random.split(key)
  shift = jax.random.randint(shift_key, (), 0, classes, jnp.int32)
  labels = (labels + shift) % classes
  return parallel.split(jax.random.permutation(order_key, labels))


def of_classes(decisions: jax.Array, classes: jax.Array) -> jax.Array:
  """i32[n] indices into i32[m] `decisions`, of each of i32[n] `classes`.

  A class's second request gets its second example, and so on; once there are no
  more it begins again. Where there is none at all, the example of any class in
  the request's own place stands in, so that stand-ins differ.
  """
  by_class = jnp.argsort(decisions)
  decided = decisions[by_class]
  first = jnp.searchsorted(decided, classes)
  count = jnp.searchsorted(decided, classes, side="right") - first
  # How often the same class was asked for before, in the order of `classes`.
  place = jnp.argsort(jnp.argsort(classes))
  nth = place - jnp.searchsorted(jnp.sort(classes), classes)
  found = by_class[first + nth % jnp.maximum(count, 1)]
  stand_in = jnp.arange(len(classes)) % len(decisions)
  return jnp.where(count > 0, found, stand_in)
