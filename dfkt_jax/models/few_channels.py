"""3x3 convolutions of few channels, made faster on XLA:CPU.

XLA:CPU is slow at convolutions of few channels. Here they compute several
neighboring columns of the output at once, as channels of a strided convolution
with a wider kernel. The wide kernel holds one copy of the kernel per column,
each shifted by a column more, with zeros beside it. Two columns take 4/3 of the
arithmetic and four columns twice as much, and both are still faster
(docs/performance.md has the numbers). On other devices it is an ordinary
convolution.

The gradient is written by hand, so that JAX has no forward mode through it
(`jax.jvp`, `jax.hessian`) on any device. On a CPU an infinity or a NaN spreads
up to three columns beyond the window.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

NUMBERS = ("NHWC", "HWIO", "NHWC")
PADDING = ((1, 1), (1, 1))


def conv_general_dilated(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Any,
  padding: Any,
  **settings: Any,
) -> jax.Array:
  """Convolve for `nn.Conv`, in place of `jax.lax.conv_general_dilated`.

  [b, h, w, inputs], [3, 3, inputs, outputs] -> [b, h, w, outputs], padded by 1
  and of stride 1; other convolutions are left to JAX. Dimensions are in this
  order, as in `nn.Conv`, and there are no groups of batches.
  """
  supported = (
    kernel.shape[:2] == (3, 3)
    and tuple(window_strides) == (1, 1)
    and tuple(map(tuple, padding)) == PADDING
    and settings.get("feature_group_count", 1) == 1
    and all(
      settings.get(name) in (None, (1, 1))
      for name in ("lhs_dilation", "rhs_dilation")
    )
    and settings.get("precision") is None
    and settings.get("preferred_element_type") is None
  )
  if supported and count_columns(x.shape, kernel.shape) > 1:
    return _conv(x, kernel)
  return jax.lax.conv_general_dilated(
    x, kernel, window_strides, padding, **settings
  )


def count_columns(x: tuple[int, ...], kernel: tuple[int, ...]) -> int:
  """Return the number of columns computed at once, for arrays of these shapes.

  Thresholds are measured; the number divides the width of the image.
  """
  width, (inputs, outputs) = x[2], kernel[2:]
  if min(inputs, outputs) == 1:
    return 1
  size = inputs * outputs
  wanted = 4 if size <= 64 or outputs < 8 else 2 if size <= 256 else 1
  return math.gcd(width, wanted)


@jax.custom_vjp
def _conv(x, kernel):
  return jax.lax.platform_dependent(x, kernel, cpu=_by_columns, default=_plain)


def _forward(x, kernel):
  return _conv(x, kernel), (x, kernel)


def _backward(residuals, dy):
  # JAX's gradient of a strided convolution is a dilated one, which is slower
  # than all that the wide kernel saves.
  x, kernel = residuals
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  dx = _conv if count_columns(dy.shape, turned.shape) > 1 else _plain
  _, weights = jax.vjp(lambda kernel: _plain(x, kernel), kernel)
  return dx(dy, turned), *weights(dy)


_conv.defvjp(_forward, _backward)


def _plain(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), PADDING, dimension_numbers=NUMBERS
  )


def _by_columns(x, kernel):
  """Convolve with a copy of the kernel for each of several columns."""
  count = count_columns(x.shape, kernel.shape)
  none = (0, 0)
  shifted = [
    jnp.pad(kernel, (none, (i, count - 1 - i), none, none))
    for i in range(count)
  ]
  wide = jnp.stack(shifted, 3).reshape(3, 2 + count, kernel.shape[2], -1)
  y = jax.lax.conv_general_dilated(
    x, wide, (1, count), PADDING, dimension_numbers=NUMBERS
  )
  return y.reshape(*x.shape[:3], kernel.shape[3])
