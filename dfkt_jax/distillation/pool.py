"""A ring buffer of synthesised images on the device, 8 bits a channel.

Rounding to 8 bits is what the released code does by storing PNG files; it makes
a replay exactly reproducible and the pool a quarter of the size.

The pool is in stripes, and the devices of the mesh share them out as they share
a batch: every part of a batch is stored where it was made, so pushing moves
nothing between devices. Drawing sums up what each device holds of the drawn
images, and never brings the pool together. What is drawn does not depend on the
number of devices.
"""

import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.synthesis.contract import Batch

BYTES = 4  # of a word


@struct.dataclass
class Pool:
  """What is held; four channels are one word.

  A TPU sums bytes over devices as words of 4 bytes, four times the message.
  Packed, an image's word is a sum of itself and of zeros, and stays as it is.
  """

  words: jax.Array  # u32[stripes, slots, ceil(height * width * channels / 4)]
  labels: jax.Array  # i32[stripes, slots]
  pushed: jax.Array  # i32[], images ever pushed
  soft_labels: jax.Array | None  # f32[stripes, slots, classes], logits
  shape: tuple[int, int, int] = struct.field(pytree_node=False)

  @property
  def capacity(self) -> int:
    return math.prod(self.labels.shape)

  @property
  def images(self) -> jax.Array:
    """u8[stripes, slots, height, width, channels]"""
    return _unpack(self.words, self.shape)


def _pack(images: jax.Array) -> jax.Array:
  """u8[..., height, width, channels] as u32[..., words].

  The first quarter of an image's bytes are the low ones of its words.
  """
  leading, size = images.shape[:-3], math.prod(images.shape[-3:])
  words = -(-size // BYTES)
  rows = images.reshape(*leading, size)
  room = [(0, 0)] * len(leading) + [(0, words * BYTES - size)]
  quarters = jnp.pad(rows, room).reshape(*leading, BYTES, words)
  return sum(
    quarters[..., place, :].astype(jnp.uint32) << (8 * place)
    for place in range(BYTES)
  )  # type: ignore


def _unpack(words: Any, shape: tuple[int, int, int]) -> jax.Array:
  """u32[..., words] as u8[..., height, width, channels]."""
  quarters = [(words >> (8 * place)) & 255 for place in range(BYTES)]
  rows = jnp.concatenate(quarters, axis=-1)[..., : math.prod(shape)]
  return rows.astype(jnp.uint8).reshape(*words.shape[:-1], *shape)


def init(
  capacity: int,
  shape: tuple[int, int, int],
  batch_size: int,
  soft_classes: int = 0,
) -> Pool:
  """An empty pool, for batches of so many images at a time.

  It is split over the devices if `capacity` and `batch_size` both divide by
  their number. With `soft_classes` it keeps soft labels of so many.
  """
  stripes = math.gcd(capacity, batch_size)
  place = (stripes, capacity // stripes)
  words = -(-math.prod(shape) // BYTES)
  labels = parallel.split(jnp.full(place, -1, jnp.int32))
  soft_labels = None
  if soft_classes:
    soft_labels = parallel.split(jnp.zeros((*place, soft_classes)))
  held = parallel.split(jnp.zeros((*place, words), jnp.uint32))
  return Pool(held, labels, jnp.int32(0), soft_labels, shape)


def push(pool: Pool, batch: Batch) -> Pool:
  """Adds a batch of images in [0, 1]; the oldest go once the pool is full.

  Raises:
    ValueError: the batch does not fill the stripes evenly.
  """
  (stripes, slots), count = pool.labels.shape, len(batch.images)
  if count % stripes:
    raise ValueError(
      f"a batch of {count} images does not divide by the pool's {stripes}"
      " stripes: make the pool for batches of this size"
    )
  each = count // stripes
  free = (pool.pushed // stripes + jnp.arange(each)) % slots
  pixels = jnp.round(batch.images * 255).astype(jnp.uint8)

  def store(held, new):
    new = parallel.split(new.reshape(stripes, each, *new.shape[1:]))
    return parallel.split(held.at[:, free].set(new))

  soft_labels = None
  if pool.soft_labels is not None:
    soft_labels = store(pool.soft_labels, batch.soft_labels)
  return Pool(
    store(pool.words, _pack(pixels)),
    store(pool.labels, batch.labels),
    pool.pushed + count,
    soft_labels,
    pool.shape,
  )


def draw(key: jax.Array, pool: Pool, batch_size: int) -> Batch:
  """A batch drawn evenly, with replacement, from what the pool holds."""
  held = jnp.minimum(pool.pushed, pool.capacity)
  return _take(pool, jax.random.randint(key, (batch_size,), 0, held))


def latest(pool: Pool, count: int) -> Batch:
  """`count` images, the last ones pushed; those of one batch in any order."""
  return _take(pool, pool.pushed - count + jnp.arange(count))


def _take(pool, index):
  """By numbers that count through the stripes first, as they fill up."""
  stripes, slots = pool.labels.shape
  place = index % stripes, index // stripes % slots
  # Each device then goes on with its share of the batch alone.
  words = parallel.split(pool.words[place])
  images = _unpack(words, pool.shape).astype(jnp.float32) / 255
  soft_labels = None
  if pool.soft_labels is not None:
    soft_labels = pool.soft_labels[place]
  return parallel.split(Batch(images, pool.labels[place], soft_labels))
