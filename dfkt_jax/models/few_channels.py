"""3x3 convolutions of few channels, which XLA:CPU is slow at.

Several neighbouring columns of the output are made at once, as channels of a
convolution with a wider kernel and a stride: the kernel once for every column,
moved along, with zeros beside it. That is 4/3 of the arithmetic for two
columns, and twice for four, and yet faster (docs/performance.md has by how
much). On other devices it is the convolution as it is.

The gradient is written by hand, and JAX then has no forward mode through it
(`jax.jvp`, `jax.hessian`) on any device. On a CPU an infinity or a NaN reaches
up to three columns further than the window does.
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
  """`jax.lax.conv_general_dilated`, for `nn.Conv` to convolve with.

  [b, h, w, inputs], [3, 3, inputs, outputs] -> [b, h, w, outputs], padded by 1
  and of stride 1; what is not of that kind goes to JAX's own. Dimensions are in
  this order, as `nn.Conv` has them, and there are no groups of batches.
  """
  alike = (
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
  if alike and columns(x.shape, kernel.shape) > 1:
    return _conv(x, kernel)
  return jax.lax.conv_general_dilated(
    x, kernel, window_strides, padding, **settings
  )


def columns(x: tuple[int, ...], kernel: tuple[int, ...]) -> int:
  """How many are made at once, of arrays of these shapes; as measured."""
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


def _backward(kept, dy):
  # By hand, since the gradient of a stride is a convolution with holes, which
  # is slower than what was saved.
  x, kernel = kept
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  dx = _conv if columns(dy.shape, turned.shape) > 1 else _plain
  _, weights = jax.vjp(lambda kernel: _plain(x, kernel), kernel)
  return dx(dy, turned), *weights(dy)


_conv.defvjp(_forward, _backward)


def _plain(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), PADDING, dimension_numbers=NUMBERS
  )


def _by_columns(x, kernel):
  count = columns(x.shape, kernel.shape)
  none = (0, 0)
  moved = [
    jnp.pad(kernel, (none, (i, count - 1 - i), none, none))
    for i in range(count)
  ]
  wide = jnp.stack(moved, 3).reshape(3, 2 + count, kernel.shape[2], -1)
  y = jax.lax.conv_general_dilated(
    x, wide, (1, count), PADDING, dimension_numbers=NUMBERS
  )
  return y.reshape(*x.shape[:3], kernel.shape[3])
