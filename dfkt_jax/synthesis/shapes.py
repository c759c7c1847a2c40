"""Shaded shapes on black: an image prior drawn from noise, without any image.

A shape is the region where smooth noise is high, with an edge of random
sharpness; its shading is a sigmoid of other smooth noise. Objects lie in the
center and are often symmetric, so most outlines fall off towards the border and
most shapes are mirrored. It is a statistical image model in the spirit of
Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021; its parts
and numbers are ours, chosen on Fashion-MNIST.
"""

import jax
import jax.numpy as jnp

from dfkt_jax.augment import smooth_noise

MIRRORED = 0.7  # share of images
CENTERED = 0.7  # share of images
OUTLINE_CELLS = (2, 3, 4, 5, 7)  # cells of smooth noise along an axis
SHADING_CELLS = (2, 3, 4, 5, 7, 10, 14, 28)


def shaded_shapes(
  key: jax.Array, count: int, shape: tuple[int, int, int]
) -> jax.Array:
  """Return f32[count, height, width, channels] images in [0, 1]."""
  *size, channels = shape
  keys = iter(jax.random.split(key, 12))
  normal = lambda: jax.random.normal(next(keys), (count, 1, 1, 1))
  uniform = lambda *shape: jax.random.uniform(next(keys), (count, *shape))
  mirrored = uniform(1, 1, 1) < MIRRORED

  def smooth(cells):
    noise = smooth_noise(next(keys), count, size, cells)
    twin = (noise + noise[:, :, ::-1]) / jnp.sqrt(2.0)
    return jnp.where(mirrored, twin, noise)

  outline = smooth(OUTLINE_CELLS) + 0.5 * normal() + 0.7
  y, x = (jnp.linspace(-1.0, 1.0, n) ** 4 for n in size)
  fall = 4.0 * (
    uniform(1, 1, 1) * y[None, :, None, None]
    + uniform(1, 1, 1) * x[None, None, :, None]
  )
  outline -= jnp.where(uniform(1, 1, 1) < CENTERED, fall, 0.0)
  sharpness = jnp.exp(1.5 + normal())
  level = 1.5 * jax.random.normal(next(keys), (count, 1, 1, channels))
  shading = (
    2.0 * uniform(1, 1, 1) * smooth(SHADING_CELLS)
    + 2.0 * uniform(1, 1, 1) * smooth(SHADING_CELLS)
    + level
  )
  return jax.nn.sigmoid(sharpness * outline) * jax.nn.sigmoid(shading)
