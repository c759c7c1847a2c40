"""What an image is expected to look like, whatever it shows.

Images are f32[batch, height, width, channels]; each loss is a scalar.
"""

import jax
import jax.numpy as jnp


def total_variation_l2(images: jax.Array) -> jax.Array:
  """Sum of the L2 norms of the four neighbour-difference images.

  Right, down and both diagonals, each norm over the whole batch (Yin et al.,
  CVPR 2020, as released). It therefore grows with the square root of the batch.
  """
  norms = [jnp.sqrt(jnp.sum(d * d) + 1e-12) for d in _differences(images)]
  return jnp.stack(norms).sum()


def total_variation_l1(images: jax.Array) -> jax.Array:
  """Sum of the mean absolute neighbour differences in the same directions."""
  means = [jnp.abs(d).mean() for d in _differences(images)]
  return jnp.stack(means).sum()


def l2_norm(images: jax.Array) -> jax.Array:
  """Mean over the batch of every image's L2 norm."""
  squared = jnp.square(images).sum((1, 2, 3))
  return jnp.sqrt(squared + 1e-12).mean()


def _differences(x):
  return (
    x[:, :, 1:] - x[:, :, :-1],
    x[:, 1:] - x[:, :-1],
    x[:, 1:, 1:] - x[:, :-1, :-1],
    x[:, 1:, :-1] - x[:, :-1, 1:],
  )
