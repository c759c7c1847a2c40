"""A ring buffer of synthesized images on the device, 8 bits a channel.

The released code rounds to 8 bits by storing PNG files; rounding makes a replay
exactly reproducible and the buffer a quarter of the size.

The buffer is an array [stripes, slots, ...]. A stripe is a small ring buffer of
its own, and each batch fills the same number of slots of every stripe. Stripes
are sharded over the devices of the mesh as a batch is, so every device stores
the part of a batch that it made, and pushing moves nothing between devices.
Drawing sums over the devices, each of which contributes the drawn images that
it holds, and never gathers the buffer. The images drawn do not depend on the
number of devices.
"""

import math
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Batch, unlabelled
from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import UsageError

BYTES = 4  # of a word


@struct.dataclass
class ReplayBuffer:
  """Images with their labels and soft labels; four channels form one word.

  A TPU sums bytes over devices as words of 4 bytes, a message four times as
  long. In packed form an image's word is summed with zeros and is unchanged.
  """

  words: jax.Array  # u32[stripes, slots, ceil(height * width * channels / 4)]
  labels: jax.Array  # i32[stripes, slots]
  pushed: jax.Array  # i32[], images ever pushed
  soft_labels: jax.Array | None  # f32[stripes, slots, classes], logits
  shape: tuple[int, int, int] = struct.field(pytree_node=False)

  @property
  def capacity(self) -> int:
    """The number of images that fit."""
    return math.prod(self.labels.shape)

  @property
  def images(self) -> jax.Array:
    """The images, u8[stripes, slots, height, width, channels]."""
    return _unpack(self.words, self.shape)


def _pack(images: jax.Array) -> jax.Array:
  """Pack u8[..., height, width, channels] as u32[..., words].

  The first quarter of an image's bytes are the low bytes of its words.
  """
  leading, size = images.shape[:-3], math.prod(images.shape[-3:])
  words = -(-size // BYTES)
  rows = images.reshape(*leading, size)
  padding = [(0, 0)] * len(leading) + [(0, words * BYTES - size)]
  quarters = jnp.pad(rows, padding).reshape(*leading, BYTES, words)
  return sum(
    quarters[..., place, :].astype(jnp.uint32) << (8 * place)
    for place in range(BYTES)
  )  # type: ignore


def _unpack(words: Any, shape: tuple[int, int, int]) -> jax.Array:
  """Unpack u32[..., words] to u8[..., height, width, channels]."""
  quarters = [(words >> (8 * place)) & 255 for place in range(BYTES)]
  rows = jnp.concatenate(quarters, axis=-1)[..., : math.prod(shape)]
  return rows.astype(jnp.uint8).reshape(*words.shape[:-1], *shape)


def init(
  capacity: int,
  shape: tuple[int, int, int],
  batch_size: int,
  soft_classes: int = 0,
) -> ReplayBuffer:
  """Return an empty buffer for batches of `batch_size` images.

  It is sharded over the devices if their number divides both `capacity` and
  `batch_size`.

  Args:
    capacity: the number of images that fit.
    shape: (height, width, channels) of an image.
    batch_size: the number of images that are pushed together.
    soft_classes: the number of classes of the soft labels; 0: none are stored.
  """
  stripes = math.gcd(capacity, batch_size)
  place = (stripes, capacity // stripes)
  words = -(-math.prod(shape) // BYTES)
  labels = shard(jnp.full(place, -1, jnp.int32))
  soft_labels = None
  if soft_classes:
    soft_labels = shard(jnp.zeros((*place, soft_classes)))
  stored = shard(jnp.zeros((*place, words), jnp.uint32))
  return ReplayBuffer(stored, labels, jnp.int32(0), soft_labels, shape)


def push(buffer: ReplayBuffer, batch: Batch) -> ReplayBuffer:
  """Add a batch of images in [0, 1]; a full buffer drops its oldest images.

  Images, labels and (if the buffer has room for them) soft labels are stored;
  the `rows` and `weights` of a batch are not.

  Raises:
    UsageError: the batch does not fill the stripes evenly; it is what a
      synthesizer's `sample` returned.
  """
  (stripes, slots), count = buffer.labels.shape, len(batch.images)
  if count % stripes:
    raise UsageError(
      f"`sample` returned {count} images and the replay buffer stores multiples"
      f" of {stripes}: let `sample` return the `count` images that it is asked"
      " for"
    )
  chex.assert_shape(batch.images, (count, *buffer.shape))
  labels = batch.labels
  if labels is None:
    labels = unlabelled(batch.images).labels
  chex.assert_shape(labels, (count,))
  each = count // stripes
  free = (buffer.pushed // stripes + jnp.arange(each)) % slots
  pixels = jnp.round(batch.images * 255).astype(jnp.uint8)

  def store(stored, new):
    new = shard(new.reshape(stripes, each, *new.shape[1:]))
    return shard(stored.at[:, free].set(new))

  soft_labels = None
  if buffer.soft_labels is not None:
    chex.assert_shape(batch.soft_labels, (count, *buffer.soft_labels.shape[2:]))
    soft_labels = store(buffer.soft_labels, batch.soft_labels)
  return ReplayBuffer(
    store(buffer.words, _pack(pixels)),
    store(buffer.labels, labels),
    buffer.pushed + count,
    soft_labels,
    buffer.shape,
  )


def draw(key: jax.Array, buffer: ReplayBuffer, batch_size: int) -> Batch:
  """Draw a batch uniformly, with replacement, from the images stored."""
  stored = jnp.minimum(buffer.pushed, buffer.capacity)
  return _take(buffer, jax.random.randint(key, (batch_size,), 0, stored))


def latest(buffer: ReplayBuffer, count: int) -> Batch:
  """Return the last `count` images pushed; a batch's own order is not kept."""
  return _take(buffer, buffer.pushed - count + jnp.arange(count))


def _take(buffer, index):
  """Look images up by numbers that count over the stripes, then the slots."""
  stripes, slots = buffer.labels.shape
  place = index % stripes, index // stripes % slots
  # From here on each device works on its share of the batch alone.
  words = shard(buffer.words[place])
  images = _unpack(words, buffer.shape).astype(jnp.float32) / 255
  soft_labels = None
  if buffer.soft_labels is not None:
    soft_labels = buffer.soft_labels[place]
  return shard(Batch(images, buffer.labels[place], soft_labels))
