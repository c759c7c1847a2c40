"""A ring buffer of synthesised images on the device, 8 bits a channel.

Rounding to 8 bits is what the released code does by storing PNG files; it makes
a replay exactly reproducible and the pool a quarter of the size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.synthesis.contract import Batch


class Pool(NamedTuple):
  images: jax.Array  # u8[capacity, height, width, channels]
  labels: jax.Array  # i32[capacity]
  pushed: jax.Array  # i32[], images ever pushed
  soft_labels: jax.Array | None = None  # f32[capacity, classes], logits


def init(
  capacity: int, shape: tuple[int, int, int], soft_classes: int = 0
) -> Pool:
  """An empty pool; with `soft_classes` it keeps soft labels of so many."""
  images = parallel.split(jnp.zeros((capacity, *shape), jnp.uint8))
  labels = parallel.split(jnp.full(capacity, -1, jnp.int32))
  soft_labels = None
  if soft_classes:
    soft_labels = parallel.split(jnp.zeros((capacity, soft_classes)))
  return Pool(images, labels, jnp.int32(0), soft_labels)


def push(pool: Pool, batch: Batch) -> Pool:
  """Adds a batch of images in [0, 1]; the oldest go once the pool is full."""
  capacity, count = len(pool.images), len(batch.images)
  slots = (pool.pushed + jnp.arange(count)) % capacity
  pixels = jnp.round(batch.images * 255).astype(jnp.uint8)
  store = lambda held, new: parallel.split(held.at[slots].set(new))
  soft_labels = None
  if pool.soft_labels is not None:
    soft_labels = store(pool.soft_labels, batch.soft_labels)
  return Pool(
    store(pool.images, pixels),
    store(pool.labels, batch.labels),
    pool.pushed + count,
    soft_labels,
  )


def draw(key: jax.Array, pool: Pool, batch_size: int) -> Batch:
  """A batch drawn evenly, with replacement, from what the pool holds."""
  held = jnp.minimum(pool.pushed, len(pool.images))
  index = jax.random.randint(key, (batch_size,), 0, held)
  return _take(pool, index)


def latest(pool: Pool, count: int) -> Batch:
  """The last `count` images pushed."""
  index = (pool.pushed - count + jnp.arange(count)) % len(pool.images)
  return _take(pool, index)


def _take(pool, index):
  images = pool.images[index].astype(jnp.float32) / 255
  soft_labels = None
  if pool.soft_labels is not None:
    soft_labels = pool.soft_labels[index]
  return parallel.split(Batch(images, pool.labels[index], soft_labels))
