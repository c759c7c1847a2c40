"""Class targets for a batch of images."""

import jax
import jax.numpy as jnp

from dfkt_jax.devices.sharding import shard


def balanced(key: jax.Array, batch_size: int, classes: int) -> jax.Array:
  """Return i32[batch] labels in random order, all classes equally often.

  Their counts differ by one at most. A batch of fewer images than there are
  classes has that number of random classes.
  """
  if batch_size < classes:
    # Random and not neighboring classes: ImageNet's are sorted by kind, and the
    # statistics of a hundred breeds of dog are not the data's.
    chosen = jax.random.permutation(key, jnp.arange(classes, dtype=jnp.int32))
    return shard(chosen[:batch_size])
  labels = jnp.arange(batch_size, dtype=jnp.int32) % classes
  # The classes with one more image must not always be the first ones.
  shift_key, order_key = jax.random.split(key)
  shift = jax.random.randint(shift_key, (), 0, classes, jnp.int32)
  labels = (labels + shift) % classes
  return shard(jax.random.permutation(order_key, labels))


def of_classes(decisions: jax.Array, classes: jax.Array) -> jax.Array:
  """Return an index into i32[m] `decisions` for each of i32[n] `classes`.

  The k-th request of a class gets the class's k-th example, and begins again at
  the first after the last. A class without examples gets the example at the
  request's own position modulo m, whatever its class, so that these differ.
  """
  by_class = jnp.argsort(decisions)
  decided = decisions[by_class]
  first = jnp.searchsorted(decided, classes)
  count = jnp.searchsorted(decided, classes, side="right") - first
  # The number of earlier requests of the same class.
  place = jnp.argsort(jnp.argsort(classes))
  nth = place - jnp.searchsorted(jnp.sort(classes), classes)
  found = by_class[first + nth % jnp.maximum(count, 1)]
  stand_in = jnp.arange(len(classes)) % len(decisions)
  return jnp.where(count > 0, found, stand_in)
