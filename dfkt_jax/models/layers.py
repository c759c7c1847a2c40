"""What several architectures share.

Paddings are integers as in PyTorch: 'SAME' pads strided convolutions
differently and shifts an imported network by a pixel.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models.norm import BatchNorm, keep_latest

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


def head(module: nn.Module, x: jax.Array, classes: int, *, name: str):
  """The last linear layer: names "penultimate", answers f32 logits."""
  x = x.astype(jnp.float32)
  feature(module, "penultimate", x)
  return nn.Dense(classes, name=name)(x)


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
