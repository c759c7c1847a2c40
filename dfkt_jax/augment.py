"""Augmentation inside jit, drawn anew for every image.

Images are [batch, height, width, channels] and keep shape and dtype.
"""

from typing import Any

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


def mixup(
  key: jax.Array,
  batch: Any,
  alpha: float,
  own_first: bool = False,
  each: bool = False,
) -> Any:
  """w batch + (1 - w) batch in another order, for every array of a tree.

  One w ~ Beta(alpha, alpha) and one order for all of them (mixup: Zhang et al.,
  ICLR 2018). `own_first` takes w or 1 - w, whichever is larger, so that each
  stays nearer to itself (MixMatch: Berthelot et al., NeurIPS 2019, equation 9).
  `each` gives every example a w of its own.
  """
  weight_key, order_key = jax.random.split(key)
  count = len(jax.tree.leaves(batch)[0])
  weight = jax.random.beta(weight_key, alpha, alpha, (count if each else 1,))
  if own_first:
    weight = jnp.maximum(weight, 1.0 - weight)
  order = jax.random.permutation(order_key, count)

  def mix(x):
    w = weight.reshape(-1, *[1] * (x.ndim - 1))
    return w * x + (1.0 - w) * parallel.split(x[order])

  return jax.tree.map(mix, batch)


def quarter_turns(images: jax.Array, turns: jax.Array) -> jax.Array:
  """Turns square images by i32[batch] quarters, 0 to 3, against the clock."""
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
  """The views of MoCo v2 (Chen et al. 2020): crop, colours, blur, flip.

  A `resized_crop`, `colour_jitter` for 0.8 of the images, and so many made grey
  and blurred. Images are in [0, 1].
  """
  keys = jax.random.split(key, 7)
  images = resized_crop(keys[0], images, smallest_crop)
  jittered = colour_jitter(keys[1], images, colour)
  images = _some(keys[2], 0.8, jittered, images)
  images = _some(keys[3], grey, luminance(images), images)
  images = _some(keys[4], blur, gaussian_blur(keys[5], images), images)
  return random_flip(keys[6], images) if flip else images


def _some(key, share, changed, images):
  """Each image of `changed` with this probability, else of `images`."""
  chosen = jax.random.bernoulli(key, share, (len(images), 1, 1, 1))
  return jnp.where(chosen, changed, images)


def resized_crop(
  key: jax.Array, images: jax.Array, smallest: float
) -> jax.Array:
  """A random rectangle of each image, blown up to its size, bilinear.

  It has from `smallest` to all of the area and sides of 3:4 to 4:3 (Szegedy et
  al., CVPR 2015), cut down where it would be larger than the image, where
  torchvision draws again.
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
  """Brightness, contrast, saturation and hue, drawn for each image.

  The first three by factors of 1 - strength to 1 + strength, the last by up to
  a quarter of `strength` of the circle, as MoCo v2 has it. They come in this
  order, and hue turns about the grey axis: torchvision shuffles and goes
  through HSV. An image of one channel has no colour: the first two remain.
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
  return jnp.clip(other + factor * (images - other), 0.0, 1.0)


def _turn_hue(images, turn):
  """By f32[batch] of the circle about the axis on which colours are equal."""
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
  """What is seen without colour, in all channels (ITU-R 601)."""
  if images.shape[-1] != 3:
    return images
  weights = jnp.array([0.299, 0.587, 0.114])
  grey = jnp.einsum("bhwc,c->bhw", images, weights)[..., None]
  return jnp.broadcast_to(grey, images.shape)


def gaussian_blur(key: jax.Array, images: jax.Array) -> jax.Array:
  """Blurs each image by a deviation of its own; edges are not darkened.

  0.1 to 2 pixels at a height of 224 (MoCo v2), in proportion at other sizes.
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
