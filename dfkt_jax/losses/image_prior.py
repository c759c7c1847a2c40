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


def pixel_sum(images: jax.Array) -> jax.Array:
  """Mean over the batch of the sum of an image's values: dark costs nothing."""
  return jnp.abs(images).sum((1, 2, 3)).mean()


def neighbour_sum(images: jax.Array) -> jax.Array:
  """Anisotropic total variation: an image's absolute neighbour differences.

  Right and down, summed over the image, mean over the batch (Rudin et al. 1992
  in its L1 form). An image's share does not depend on the batch.
  """
  right, down, *_ = _differences(images)
  sums = [jnp.abs(d).sum((1, 2, 3)).mean() for d in (right, down)]
  return sums[0] + sums[1]


def _differences(x):
  return (
    x[:, :, 1:] - x[:, :, :-1],
    x[:, 1:] - x[:, :-1],
    x[:, 1:, 1:] - x[:, :-1, :-1],
    x[:, 1:, :-1] - x[:, :-1, 1:],
  )
