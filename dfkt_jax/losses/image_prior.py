"""Priors of images: smooth, dark, of small norm, whatever they show.

Images are f32[batch, height, width, channels]. A loss is per image, f32[batch],
unless its docstring says that it is a scalar of the whole batch.
"""

import chex
import jax
import jax.numpy as jnp


def total_variation_l2(images: jax.Array) -> jax.Array:
  """Return the sum of the L2 norms of four neighbor-difference images, f32[].

  Right, down and both diagonals, each norm over the whole batch (Yin et al.,
  CVPR 2020, as released). It is therefore a scalar of the batch that grows with
  the square root of the batch size.
  """
  norms = [jnp.sqrt(jnp.sum(d * d) + 1e-12) for d in _differences(images)]
  return jnp.stack(norms).sum()


def total_variation_l1(images: jax.Array) -> jax.Array:
  """Return the summed mean absolute neighbor differences of the batch, f32[].

  In the four directions of `total_variation_l2`, each mean over the batch.
  """
  means = [jnp.abs(d).mean() for d in _differences(images)]
  return jnp.stack(means).sum()


def l2_norm(images: jax.Array) -> jax.Array:
  """Return the L2 norm of every image."""
  chex.assert_rank(images, 4)
  squared = jnp.square(images).sum((1, 2, 3))
  return jnp.sqrt(squared + 1e-12)


def pixel_sum(images: jax.Array) -> jax.Array:
  """Return the sum of absolute values of every image: dark costs nothing."""
  chex.assert_rank(images, 4)
  return jnp.abs(images).sum((1, 2, 3))


def neighbour_sum(images: jax.Array) -> jax.Array:
  """Return the anisotropic total variation of every image.

  The sum of its absolute differences to the right and down (Rudin et al. 1992
  in its L1 form).
  """
  right, down, *_ = _differences(images)
  sums = [jnp.abs(d).sum((1, 2, 3)) for d in (right, down)]
  return sums[0] + sums[1]


def _differences(x):
  """Return the differences to the right, down and along both diagonals."""
  chex.assert_rank(x, 4)
  return (
    x[:, :, 1:] - x[:, :, :-1],
    x[:, 1:] - x[:, :-1],
    x[:, 1:, 1:] - x[:, :-1, :-1],
    x[:, 1:, :-1] - x[:, :-1, 1:],
  )
