"""What several architectures share.

Paddings are integers as in PyTorch: 'SAME' pads strided convolutions
differently and shifts an imported network by a pixel.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

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
  padding: int | None = None,
  dtype: Any = jnp.float32,
) -> nn.Conv:
  """A square convolution, padded by size // 2 unless told otherwise."""
  return nn.Conv(
    width,
    (size, size),
    strides=stride,
    padding=size // 2 if padding is None else padding,
    use_bias=bias,
    kernel_init=he_normal,
    dtype=dtype,
    name=name,
  )


def batch_norm(
  train: bool, *, name: str, dtype: Any = jnp.float32, epsilon: float = 1e-5
) -> BatchNorm:
  return BatchNorm(
    use_running_average=not train, epsilon=epsilon, dtype=dtype, name=name
  )


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


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
  return nn.max_pool(x, (size, size), strides=(size, size))


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
  """Nearest-neighbour: [b, h, w, c] -> [b, factor h, factor w, c]."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
  return x.reshape(b, h * factor, w * factor, c)
