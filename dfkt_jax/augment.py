"""Augmentation inside jit, drawn anew for every image.

Images are [batch, height, width, channels] and keep shape and dtype.
"""

import jax
import jax.numpy as jnp

from dfkt_jax import parallel


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


def random_affine(
  key: jax.Array, images: jax.Array, rotation: float, shrink: float
) -> jax.Array:
  """Turns by up to `rotation` degrees, shrinks by up to the share `shrink`.

  About the centre, to either side, bilinear; what comes in is zero.
  """
  _, height, width, _ = images.shape
  turn_key, size_key = jax.random.split(key)
  angles = jnp.deg2rad(rotation) * jax.random.uniform(
    turn_key, (len(images),), minval=-1.0
  )
  scales = 1.0 - shrink * jax.random.uniform(size_key, (len(images),))
  y, x = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2,
    jnp.arange(width) - (width - 1) / 2,
    indexing="ij",
  )

  def warp(image, angle, scale):
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    source = [
      cos * y + sin * x + (height - 1) / 2,
      cos * x - sin * y + (width - 1) / 2,
    ]
    channel = lambda plane: jax.scipy.ndimage.map_coordinates(
      plane, source, order=1, mode="constant"
    )
    return jax.vmap(channel, in_axes=2, out_axes=2)(image)

  return jax.vmap(warp)(images, angles, scales)


def gaussian_noise(key: jax.Array, images: jax.Array, std: float) -> jax.Array:
  """Adds independent noise to every value; the result stays in [0, 1]."""
  noise = std * parallel.split(jax.random.normal(key, images.shape))
  return jnp.clip(images + noise, 0.0, 1.0)


def salt_and_pepper(
  key: jax.Array, images: jax.Array, share: float
) -> jax.Array:
  """Sets so many of the pixels to 0 or 1, all channels alike."""
  drawn = jax.random.uniform(key, (*images.shape[:3], 1))
  drawn = parallel.split(drawn)
  images = jnp.where(drawn < share, 1.0, images)
  return jnp.where(drawn < share / 2, 0.0, images)


def mix(key: jax.Array, images: jax.Array, share: float) -> jax.Array:
  """Mixes so many of the images with others of the batch, drawn at random.

  Half of those are a convex combination (mixup: Zhang et al., ICLR 2018), half
  take one image inside and the other outside of a smooth random mask (FMix:
  Harris et al. 2020). A teacher has to answer for what comes out.
  """
  keys = jax.random.split(key, 5)
  count, height, width, _ = images.shape
  others = images[jax.random.permutation(keys[0], count)]
  convex = jax.random.uniform(keys[1], (count, 1, 1, 1))
  mask = smooth_noise(keys[2], count, [height, width], (4,)) > 0
  fair = jax.random.bernoulli(keys[3], 0.5, (count, 1, 1, 1))
  weight = jnp.where(fair, convex, mask)
  mixed = jax.random.bernoulli(keys[4], share, (count, 1, 1, 1))
  weight = jnp.where(mixed, weight, 1.0)
  return weight * images + (1.0 - weight) * others


def smooth_noise(
  key: jax.Array, count: int, size: list[int], cells: tuple[int, ...]
) -> jax.Array:
  """f32[count, height, width, 1]: unit Gaussians on a grid, cubic in between.

  Each image has so many rows and columns of its own, drawn from `cells`.
  """
  keys = jax.random.split(key, 3)
  noise = jax.random.normal(keys[0], (count, max(cells), max(cells)))
  rows, columns = (
    _cubic(n, cells)[jax.random.randint(k, (count,), 0, len(cells))]
    for k, n in zip(keys[1:], size)
  )
  noise = parallel.split(noise)
  return jnp.einsum("nhi,nij,nwj->nhw", rows, noise, columns)[..., None]


def _cubic(size, cells):
  """f32[len(cells), size, max(cells)]: interpolates from so many points."""
  matrices = [jax.image.resize(jnp.eye(c), (size, c), "cubic") for c in cells]
  widest = max(cells)
  return jnp.stack(
    [jnp.pad(m, ((0, 0), (0, widest - m.shape[1]))) for m in matrices]
  )
