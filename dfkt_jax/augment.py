"""Augmentations inside jit, drawn independently for every image.

Images are [batch, height, width, channels] and keep shape and dtype.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax.devices.sharding import shard


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int, flip: bool):
  """Pad with zeros, crop at random to the old size, flip half of the images.

  The standard augmentation of small images (He et al. 2016, section 4.2).
  """
  crop_key, flip_key = jax.random.split(key)
  if padding:
    images = random_crop(crop_key, images, padding)
  if flip:
    images = random_flip(flip_key, images)
  return images


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
  """Shift each image by up to `padding` pixels and fill with zeros."""
  padded = jnp.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

  def crop(image, offset):
    start = (offset[0], offset[1], 0)
    return jax.lax.dynamic_slice(image, start, images.shape[1:])

  return jax.vmap(crop)(padded, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirror each image left to right with probability 1/2."""
  flips = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(flips, images[:, :, ::-1], images)


def jitter(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Roll the whole batch by one offset of up to `pixels` in each direction."""
  shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
  return jnp.roll(images, shift, axis=(1, 2))


def jitter_each(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Roll every image by its own offset of up to `pixels`; see `jitter`."""
  keys = jax.random.split(key, len(images))
  return jax.vmap(lambda k, x: jitter(k, x[None], pixels)[0])(keys, images)


def random_affine(
  key: jax.Array, images: jax.Array, rotation: float, shrink: float
) -> jax.Array:
  """Rotate by up to `rotation` degrees, shrink by up to the share `shrink`.

  Both about the center; rotations go to either side. Pixels are interpolated
  bilinearly and those from outside the image are zero.
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
  """Add independent noise to every value; the result stays in [0, 1]."""
  noise = std * shard(jax.random.normal(key, images.shape))
  return jnp.clip(images + noise, 0.0, 1.0)


def salt_and_pepper(
  key: jax.Array, images: jax.Array, share: float
) -> jax.Array:
  """Set this share of the pixels to 0 or 1, equal in all channels."""
  drawn = jax.random.uniform(key, (*images.shape[:3], 1))
  drawn = shard(drawn)
  images = jnp.where(drawn < share, 1.0, images)
  return jnp.where(drawn < share / 2, 0.0, images)


def mix(key: jax.Array, images: jax.Array, share: float) -> jax.Array:
  """Mix this share of the images with others of the batch, drawn at random.

  Half of the mixed images are a convex combination (mixup: Zhang et al., ICLR
  2018), half take one image inside and the other outside of a smooth random
  mask (FMix: Harris et al. 2020). Labels are not mixed: a teacher has to label
  the result.
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


def mixup(
  key: jax.Array,
  batch: Any,
  alpha: float,
  own_first: bool = False,
  each: bool = False,
) -> Any:
  """Return w x + (1 - w) x[order] for every array x of a tree.

  All arrays share one w ~ Beta(alpha, alpha) and one random order (mixup: Zhang
  et al., ICLR 2018). `own_first` takes w or 1 - w, whichever is larger, so that
  each example stays nearer to itself (MixMatch: Berthelot et al., NeurIPS 2019,
  equation 9). `each` draws an independent w for every example.
  """
  weight_key, order_key = jax.random.split(key)
  count = len(jax.tree.leaves(batch)[0])
  weight = jax.random.beta(weight_key, alpha, alpha, (count if each else 1,))
  if own_first:
    weight = jnp.maximum(weight, 1.0 - weight)
  order = jax.random.permutation(order_key, count)

  def mix(x):
    w = weight.reshape(-1, *[1] * (x.ndim - 1))
    return w * x + (1.0 - w) * shard(x[order])

  return jax.tree.map(mix, batch)


def quarter_turns(images: jax.Array, turns: jax.Array) -> jax.Array:
  """Rotate square images counterclockwise by i32[batch] quarters, 0 to 3."""
  turns, out = turns[:, None, None, None], images
  for quarters in (1, 2, 3):
    turned = jnp.rot90(images, quarters, axes=(1, 2))
    out = jnp.where(turns == quarters, turned, out)
  return out


def strong(
  key: jax.Array,
  images: jax.Array,
  *,
  smallest_crop: float = 0.2,
  colour: float = 0.4,
  grey: float = 0.2,
  blur: float = 0.5,
  flip: bool = True,
) -> jax.Array:
  """Return views as in MoCo v2 (Chen et al. 2020): crop, color, blur, flip.

  Each image gets a `resized_crop`, 0.8 of them a `colour_jitter` of strength
  `colour`, the share `grey` becomes gray and the share `blur` is blurred.
  Images are in [0, 1].
  """
  keys = jax.random.split(key, 7)
  images = resized_crop(keys[0], images, smallest_crop)
  jittered = colour_jitter(keys[1], images, colour)
  images = _choose(keys[2], 0.8, jittered, images)
  images = _choose(keys[3], grey, luminance(images), images)
  images = _choose(keys[4], blur, gaussian_blur(keys[5], images), images)
  return random_flip(keys[6], images) if flip else images


def _choose(key, share, changed, images):
  """Choose each image from `changed` with probability `share`."""
  chosen = jax.random.bernoulli(key, share, (len(images), 1, 1, 1))
  return jnp.where(chosen, changed, images)


def resized_crop(
  key: jax.Array, images: jax.Array, smallest: float
) -> jax.Array:
  """Crop a random rectangle of each image and enlarge it to the image's size.

  The rectangle has a share of the area from `smallest` to 1 and an aspect ratio
  from 3:4 to 4:3 (Szegedy et al., CVPR 2015). A side that would be longer than
  the image's is cut to it, where torchvision draws again. Pixels are
  interpolated bilinearly.
  """
  count, height, width, _ = images.shape
  keys = jax.random.split(key, 3)
  area = jax.random.uniform(keys[0], (count,), minval=smallest)
  aspect = jnp.power(4 / 3, jax.random.uniform(keys[1], (count,), minval=-1.0))
  sides = [jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)]
  sides = jnp.minimum(jnp.stack(sides, 1), 1.0)
  corners = (1.0 - sides) * jax.random.uniform(keys[2], (count, 2))

  def crop(image, side, corner):
    pixels = jnp.array([height, width])
    return jax.image.scale_and_translate(
      image,
      image.shape,
      (0, 1),
      1.0 / side,
      -corner / side * pixels,
      "linear",
      antialias=False,
    )

  return jax.vmap(crop)(images, sides, corners)


def colour_jitter(
  key: jax.Array, images: jax.Array, strength: float
) -> jax.Array:
  """Change brightness, contrast, saturation and hue, drawn for each image.

  The first three change by factors of 1 - strength to 1 + strength, hue by up
  to strength / 4 of the color circle, as in MoCo v2. They are applied in this
  order, and hue rotates about the gray axis; torchvision shuffles them and
  changes hue in HSV. In images of one channel only brightness and contrast
  change.
  """
  keys = jax.random.split(key, 4)
  shape = (len(images), 1, 1, 1)
  factor = lambda k: jax.random.uniform(
    k, shape, minval=max(0.0, 1.0 - strength), maxval=1.0 + strength
  )
  images = _blend(images, jnp.zeros_like(images), factor(keys[0]))
  level = luminance(images).mean((1, 2, 3), keepdims=True)
  images = _blend(images, level, factor(keys[1]))
  if images.shape[-1] != 3:
    return images
  images = _blend(images, luminance(images), factor(keys[2]))
  turn = jax.random.uniform(keys[3], shape[:1], minval=-1.0)
  return jnp.clip(_turn_hue(images, strength / 4 * turn), 0.0, 1.0)


def _blend(images, other, factor):
  """Interpolate from `other` (0) to `images` (1), or beyond, within [0, 1]."""
  return jnp.clip(other + factor * (images - other), 0.0, 1.0)


def _turn_hue(images, turn):
  """Rotate colors by f32[batch] of the circle about the gray axis."""
  cos, sin = jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)
  cross = jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
  wide = lambda x: x[:, None, None]
  matrix = (
    wide(cos) * jnp.eye(3)[None]
    + wide(1.0 - cos) * jnp.full((1, 3, 3), 1 / 3)
    + wide(sin) * cross[None] / jnp.sqrt(3.0)
  )
  return jnp.einsum("bhwc,bcd->bhwd", images, matrix)


def luminance(images: jax.Array) -> jax.Array:
  """Return the luminance (ITU-R 601) in all channels."""
  if images.shape[-1] != 3:
    return images
  weights = jnp.array([0.299, 0.587, 0.114])
  grey = jnp.einsum("bhwc,c->bhw", images, weights)[..., None]
  return jnp.broadcast_to(grey, images.shape)


def gaussian_blur(key: jax.Array, images: jax.Array) -> jax.Array:
  """Blur each image by its own random deviation, without darkening edges.

  The deviation is 0.1 to 2 pixels at a height of 224 (MoCo v2) and proportional
  to the height at other sizes.
  """
  count, height, width, _ = images.shape
  sigma = jax.random.uniform(key, (count, 1, 1), minval=0.1, maxval=2.0)
  sigma *= height / 224

  def kernel(size):
    offsets = jnp.arange(size)[:, None] - jnp.arange(size)[None]
    squared = jnp.square(offsets)[None] / jnp.square(sigma)
    return jax.nn.softmax(-0.5 * squared, axis=-1)

  return jnp.einsum("bij,bkl,bjlc->bikc", kernel(height), kernel(width), images)


def smooth_noise(
  key: jax.Array, count: int, size: list[int], cells: tuple[int, ...]
) -> jax.Array:
  """Return smooth noise, f32[count, height, width, 1].

  `size` is (height, width). The noise interpolates cubically between unit
  Gaussians on a grid. The numbers of rows and of columns of each image's grid
  are drawn from `cells`.
  """
  keys = jax.random.split(key, 3)
  noise = jax.random.normal(keys[0], (count, max(cells), max(cells)))
  rows, columns = (
    _cubic(n, cells)[jax.random.randint(k, (count,), 0, len(cells))]
    for k, n in zip(keys[1:], size)
  )
  noise = shard(noise)
  return jnp.einsum("nhi,nij,nwj->nhw", rows, noise, columns)[..., None]


def _cubic(size, cells):
  """Return matrices that interpolate `size` values from c, c of `cells`.

  They are f32[len(cells), size, max(cells)], padded with zeros.
  """
  matrices = [jax.image.resize(jnp.eye(c), (size, c), "cubic") for c in cells]
  widest = max(cells)
  return jnp.stack(
    [jnp.pad(m, ((0, 0), (0, widest - m.shape[1]))) for m in matrices]
  )
