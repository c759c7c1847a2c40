"""What several architectures share.

Paddings are integers as in PyTorch: 'SAME' pads strided convolutions
differently and shifts an imported network by a pixel, unless TensorFlow trained
it.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models import few_channels
from dfkt_jax.models.norm import BatchNorm, keep_latest

BOTTLENECK = "bottleneck"

# He et al. 2015, fan-out, as the PyTorch originals initialise convolutions.
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
  """A square convolution, padded by size // 2 unless told otherwise.

  "SAME" is for what TensorFlow trained: where strides leave an odd number of
  pixels to pad, the one more is at the bottom and on the right.
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
  return BatchNorm(
    use_running_average=not train, epsilon=epsilon, dtype=dtype, name=name
  )


def remat(block: Any, wanted: bool) -> Any:
  """`block`, a module class, computed again in the backward pass if `wanted`.

  Called as `block(...)(x, train)`; names, numbers and what is sown stay.
  XLA:CPU merges the two computations again, so that nothing is saved there.
  """
  return nn.remat(block, static_argnums=(2,)) if wanted else block


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """What the sfda recipe puts between the features and the classes.

  SHOT (Liang et al., ICML 2020): a linear layer, BatchNorm and, for digits,
  dropout; the classifier's weights have a direction and a length (Salimans and
  Kingma, NeurIPS 2016).
  """

  width: int = 256
  dropout: float = 0.0


class WeightNormDense(nn.Module):
  """y = x W + b with columns W_k = scale_k kernel_k / |kernel_k|."""

  features: int

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.xavier_normal(), shape)
    # Drawn like the kernel, so that W begins as it.
    length = lambda _: jnp.linalg.norm(kernel, axis=0)
    scale = self.param("scale", length)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return x @ weight_norm(kernel, scale) + bias[None]


def weight_norm(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """f32[inputs, outputs], columns of length `scale`."""
  return kernel * (scale / jnp.linalg.norm(kernel, axis=0))[None]


def head(module: Any, x: jax.Array, classes: int, *, name: str, train: bool):
  """The last linear layer: names "penultimate", answers f32 logits.

  With the module's `bottleneck` in front of it, if it has one.
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
  """Names an intermediate for `network.features`."""
  keep_latest(module, "features", name, x)


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 windows: [b, h, w, c] -> [b, h // 2, w // 2, c].

  The largest of four slices, because XLA:CPU takes longer for the gradient of a
  window's maximum than for the convolution before it (docs/performance.md). Of
  equal values the first has the gradient, as in PyTorch.
  """
  height, width = (2 * (n // 2) for n in x.shape[1:3])
  left, right = x[:, :height, 0:width:2], x[:, :height, 1:width:2]
  x = _larger(left, right)
  return _larger(x[:, 0::2], x[:, 1::2])


def max_pool_3x3(x: jax.Array) -> jax.Array:
  """3x3 windows, stride 2, padding 1: [b, h, w, c] -> [b, half h, half w, c].

  Half of an odd number is rounded up. Made and differentiated as `max_pool`.
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
  # The gradient of jnp.maximum asks which of the two equals the result. Where
  # XLA computes them again, rounded otherwise, neither does, and it is lost.
  return jnp.where(first >= second, first, second)


def once(x: jax.Array) -> jax.Array:
  """x, which XLA:CPU then computes once rather than anew for every reader.

  XLA copies arithmetic that it holds to be cheap into whatever reads it. Along
  a chain of residual blocks that is all blocks before, and in weight gradients
  it is read against the grain of memory: a fifth of a ResNet-20's step
  (docs/performance.md). A square root is not cheap, so it is not copied. On
  other devices nothing is added. An infinity becomes a NaN.
  """
  zero = jax.lax.platform_dependent(
    jax.lax.stop_gradient(x),
    cpu=lambda x: jnp.sqrt(0.0 * x),
    default=jnp.zeros_like,
  )
  return x + zero


def relu6(x: jax.Array) -> jax.Array:
  """Its gradient is 0 at 0 and at 6, as PyTorch's; nn.relu6's is 1/2.

  And it is made of no maximum, for the reason in `_larger`.
  """
  return jnp.where(x > 0, jnp.where(x < 6, x, 6.0), 0.0)


class PooledConv(nn.Module):
  """max_pool(relu(conv(x))), for few channels.

  [b, h, w, c] -> [b, (h + 2 padding - size + 1) // 2, the same of w, width], of
  even h and w.

  Each 2x2 square of pixels is one pixel of four times the channels, and one
  convolution answers for the whole square, of which the largest is taken. That
  is 1.4 times the arithmetic for kernels of 5x5, and yet faster, because
  convolutions of few channels are slow (docs/performance.md). Parameters are
  those of `conv`.
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
    blocks = size // 2 + 1  # that the windows of one square's pixels touch
    room = 2 * blocks - size
    # The kernel four times, as each of the square's pixels sees it.
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
  """[b, 2 h, 2 w, c] -> [b, h, w, 4 c], each square of pixels one pixel."""
  b, h, w, c = x.shape
  squares = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return squares.reshape(b, h // 2, w // 2, 4 * c)
