"""A 3x3 convolution of an enlarged image, without the enlarged image."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# SUMS[i][j]: which of a window's three weights fall on the j-th of the two
# pixels that it lies over; i is 0 where its middle is the first half of a
# doubled pixel, and 1 where it is the second.
SUMS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class UpsampledConv(nn.Module):
  """Nearest-neighbour upsampling by 2, then a 3x3 convolution padded by 1.

  [b, h, w, c] -> [b, 2 h, 2 w, width]. Parameters are those of `nn.Conv`.

  A window of the enlarged image lies over 2x2 pixels of the small one, in one
  of four ways. So the weights that fall on one pixel are added up first, and
  four kernels of 2x2 convolve the small image: 4/9 of the arithmetic, and no
  input of four times the size in memory. The numbers are the same but for the
  order in which they are added up.

  They are four convolutions, and not one with four times the channels, because
  the gradient of that one is slow on a CPU (docs/performance.md). Between
  devices the gradients of the four kernels travel, 16/9 of the bytes.
  """

  width: int
  kernel_init: Any
  use_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, h, w, channels = x.shape
    shape = (3, 3, channels, self.width)
    kernel = self.param("kernel", self.kernel_init, shape)
    sums = jnp.asarray(SUMS, kernel.dtype)
    # Default precision rounds to bf16 on TPUs and to TF32 on GPUs.
    kernels = jnp.einsum(
      "apk,bql,klio->abpqio", sums, sums, kernel, precision="highest"
    )
    kernels, x = kernels.astype(self.dtype), x.astype(self.dtype)
    rows = [
      jnp.stack([_conv(x, kernels[i, j], i, j) for j in (0, 1)], 3)
      for i in (0, 1)
    ]
    y = jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, self.width)
    if not self.use_bias:
      return y
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    return y + bias.astype(self.dtype)[None, None, None]


def _conv(x, kernel, i, j):
  """By windows of 2x2 that begin a pixel earlier where `i` or `j` is 0."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((1 - i, i), (1 - j, j)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
