"""A 3x3 convolution of an upsampled image that is never in memory."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# SUMS[i][j] selects those of a window's three weights that fall on the j-th of
# the two pixels below the window. i is 0 where the middle of the window is the
# first half of a doubled pixel, and 1 where it is the second half.
SUMS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


class UpsampledConv(nn.Module):
  """Nearest-neighbor upsampling by 2, then a 3x3 convolution padded by 1.

  It maps [b, h, w, c] to [b, 2 h, 2 w, width]. Parameters are those of
  `nn.Conv`.

  A window of the enlarged image lies over 2x2 pixels of the small image, in one
  of four ways. So the weights that fall on one pixel are added first, and four
  kernels of 2x2 convolve the small image: 4/9 of the arithmetic, and no input
  of four times the size in memory. The numbers differ only by the order of the
  sums.

  There are four convolutions, and not one with four times the channels, because
  the gradient of the latter is slow on a CPU (docs/performance.md). Devices
  exchange the gradients of the four kernels, 16/9 of the bytes.
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
  """Convolve by 2x2 windows, a pixel earlier in an axis where i or j is 0."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=((1 - i, i), (1 - j, j)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
