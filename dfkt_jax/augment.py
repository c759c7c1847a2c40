"""Augmentation inside jit, drawn anew for every image.

Images are [batch, height, width, channels] and keep shape and dtype.
"""

import jax
import jax.numpy as jnp


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int, flip: bool):
  """Zero padding, a random crop of the old size, and a flip half of the time.

  The standard augmentation of small images (He et al. 2016, section 4.2).
  """
  crop_key, flip_key = jax.random.split(key)
  if padding:
    images = random_crop(crop_key, images, padding)
  if flip:
    images = random_flip(flip_key, images)
  return images


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
  """Shifts each image by up to `padding` pixels; what comes in is zero."""
  padded = jnp.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

  def crop(image, offset):
    start = (offset[0], offset[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability one half."""
  flips = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flips, images[:, :, ::-1], images)


def jitter(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Rolls the whole batch by one offset of up to `pixels` in each direction."""
  shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
  return jnp.roll(images, shift, axis=(1, 2))


def jitter_each(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """`jitter` with an offset of its own for every image."""
  keys = jax.random.split(key, len(images))
  return jax.vmap(lambda k, x: jitter(k, x[None], pixels)[0])(keys, images)
