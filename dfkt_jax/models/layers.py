"""Layers shared by several architectures.

Paddings are integers as in PyTorch. "SAME" pads strided convolutions
differently, which would shift the maps of an imported network by a pixel,
unless TensorFlow trained it.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models import few_channels
from dfkt_jax.models.norm import BatchNorm, sow_latest
from dfkt_jax.network.layers import BOTTLENECK, weight_norm

# He et al. 2015, fan-out, as the PyTorch originals initialize convolutions.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
  width: int,
  size: int = 3,
  stride: int = 1,
  *,
  name: str,
  bias: bool = False,
  padding: int | Literal["SAME"] | None = None,
  groups: int = 1,
  dtype: Any = jnp.float32,
) -> nn.Conv:
  """Return a square convolution, padded by size // 2 unless `padding` is given.

  "SAME" is for networks trained in TensorFlow: where a stride leaves an odd
  number of pixels to pad, the extra one is at the bottom and on the right.
  """
  return nn.Conv(
    width,
    (size, size),
    strides=stride,
    padding=size // 2 if padding is None else padding,
    feature_group_count=groups,
    use_bias=bias,
    kernel_init=he_normal,
    dtype=dtype,
    conv_general_dilated=few_channels.conv_general_dilated,
    name=name,
  )


def batch_norm(
  train: bool, *, name: str, dtype: Any = jnp.float32, epsilon: float = 1e-5
) -> BatchNorm:
  """Return a BatchNorm with batch statistics in training."""
  return BatchNorm(
    use_running_average=not train, epsilon=epsilon, dtype=dtype, name=name
  )


def remat(block: Any, wanted: bool) -> Any:
  """Return a module class, recomputed in the backward pass if `wanted`.

  It is called as `block(...)(x, train)`. Names, numbers and sown values stay
  the same. XLA:CPU merges both computations, so that no memory is saved there.
  """
  return nn.remat(block, static_argnums=(2,)) if wanted else block


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """The layers of the SFDA recipe between the features and the classifier.

  SHOT (Liang et al., ICML 2020): a linear layer, BatchNorm and, for digits,
  dropout; the classifier's weights have a direction and a length (Salimans and
  Kingma, NeurIPS 2016).
  """

  width: int = 256
  dropout: float = 0.0


class WeightNormDense(nn.Module):
  """A linear layer with columns W_k = scale_k kernel_k / |kernel_k|."""

  features: int

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.xavier_normal(), shape)
    # The lengths of the kernel's columns, so that W starts as the kernel.
    length = lambda _: jnp.linalg.norm(kernel, axis=0)
    scale = self.param("scale", length)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return x @ weight_norm(kernel, scale) + bias[None]


def head(module: Any, x: jax.Array, classes: int, *, name: str, train: bool):
  """Apply the last linear layer; return f32 logits.

  The module's `bottleneck`, if it has one, comes before it. The input of the
  last layer is the feature "penultimate".
  """
  x = x.astype(jnp.float32)
  bottleneck: Bottleneck | None = module.bottleneck
  if bottleneck is None:
    feature(module, "penultimate", x)
    return nn.Dense(classes, name=name)(x)
  xavier = nn.initializers.xavier_normal()
  x = nn.Dense(bottleneck.width, kernel_init=xavier, name=BOTTLENECK)(x)
  x = batch_norm(train, name=f"{BOTTLENECK}_bn")(x)
  x = nn.Dropout(bottleneck.dropout, deterministic=not train)(x)
  feature(module, "penultimate", x)
  return WeightNormDense(classes, name="classifier")(x)


def feature(module: nn.Module, name: str, x: jax.Array) -> None:
  """Store an intermediate for `network.features` under `name`."""
  sow_latest(module, "features", name, x)


def max_pool(x: jax.Array) -> jax.Array:
  """Take the maximum of 2x2 windows: [b, h, w, c] -> [b, h // 2, w // 2, c].

  It is the maximum of four slices, because on XLA:CPU the gradient of a
  window's maximum takes longer than the convolution before it
  (docs/performance.md). The first of equal values gets the gradient, as in
  PyTorch.
  """
  height, width = (2 * (n // 2) for n in x.shape[1:3])
  left, right = x[:, :height, 0:width:2], x[:, :height, 1:width:2]
  x = _larger(left, right)
  return _larger(x[:, 0::2], x[:, 1::2])


def max_pool_3x3(x: jax.Array) -> jax.Array:
  """Take the maximum of 3x3 windows with stride 2 and padding 1.

  [b, h, w, c] -> [b, half h, half w, c], halves rounded up. It is computed and
  differentiated like `max_pool`.
  """
  low = jnp.asarray(-jnp.inf, x.dtype)
  for axis in (2, 1):
    padding = [(0, 0, 0)] * 4
    padding[axis] = (1, 1, 0)
    padded = jax.lax.pad(x, low, padding)
    span = 2 * ((x.shape[axis] + 1) // 2) - 1
    first, second, third = (
      jax.lax.slice_in_dim(padded, start, start + span, 2, axis)
      for start in range(3)
    )
    x = _larger(_larger(first, second), third)
  return x


def _larger(first, second):
  # The gradient of jnp.maximum goes to the input that equals the result. Where
  # XLA recomputes the inputs with another rounding, neither does, and the
  # gradient is lost.
  return jnp.where(first >= second, first, second)


def materialize(x: jax.Array) -> jax.Array:
  """Return x, stored so that XLA:CPU does not recompute it for every reader.

  XLA duplicates arithmetic that it considers cheap into each of its readers. In
  a chain of residual blocks that is the arithmetic of all previous blocks, and
  weight gradients read it with a large stride in memory: a fifth of the step of
  a ResNet-20 (docs/performance.md). Here a square root of zero is added to x on
  a CPU. XLA considers it expensive and does not duplicate it. On other devices
  nothing is added. An infinity becomes a NaN.
  """
  zero = jax.lax.platform_dependent(
    jax.lax.stop_gradient(x),
    cpu=lambda x: jnp.sqrt(0.0 * x),
    default=jnp.zeros_like,
  )
  return x + zero


def relu6(x: jax.Array) -> jax.Array:
  """Return x clipped to [0, 6].

  The gradient is 0 at 0 and at 6, as in PyTorch; that of nn.relu6 is 1/2. It
  does not use jnp.maximum for the reason given in `_larger`.
  """
  return jnp.where(x > 0, jnp.where(x < 6, x, 6.0), 0.0)


class PooledConv(nn.Module):
  """A module that computes max_pool(relu(conv(x))) of few channels.

  [b, h, w, c] -> [b, (h + 2 padding - size + 1) // 2, the same of w, width],
  where h and w are even.

  Each 2x2 square of pixels becomes one pixel with four times the channels. One
  convolution computes the outputs of a whole square, and their maximum is
  taken. For 5x5 kernels this is 1.4 times the arithmetic and still faster,
  because convolutions of few channels are slow (docs/performance.md). Its
  parameters are those of `conv`.
  """

  width: int
  size: int
  padding: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    size, channels = self.size, x.shape[-1]
    shape = (size, size, channels, self.width)
    kernel = self.param("kernel", he_normal, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    blocks = size // 2 + 1  # a side, touched by the windows of one square
    room = 2 * blocks - size
    # Four copies of the kernel, shifted for each pixel of the square.
    kernels = jnp.stack(
      [
        jnp.pad(kernel, ((dy, room - dy), (dx, room - dx), (0, 0), (0, 0)))
        for dy in (0, 1)
        for dx in (0, 1)
      ],
      axis=3,
    )
    kernels = _fold(kernels.reshape(1, 2 * blocks, 2 * blocks, -1))
    kernels = kernels.reshape(blocks, blocks, 4 * channels, 4 * self.width)
    x = jnp.pad(x, ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0)))
    y = jax.lax.conv_general_dilated(
      _fold(x).astype(self.dtype),
      kernels.astype(self.dtype),
      window_strides=(1, 1),
      padding="VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = y.reshape(*y.shape[:3], 4, self.width).max(3)
    return nn.relu(y + bias.astype(self.dtype)[None, None, None])


def _fold(x):
  """Fold 2x2 squares into channels: [b, 2 h, 2 w, c] -> [b, h, w, 4 c]."""
  b, h, w, c = x.shape
  squares = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(b, h // 2, w // 2, 4 * c)
