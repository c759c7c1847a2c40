"""Generators: networks that map noise to images in [0, 1].

The small generator of the data-free literature (Yin et al. 2021, CMI, and what
followed): a linear layer, then [upsample, 3x3 convolution, BatchNorm, LeakyReLU
0.2] twice, a convolution and a sigmoid. BatchNorm always uses the statistics of
the batch, in training and in sampling, so a generator has no running
statistics.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import UsageError
from dfkt_jax.models.upsampled_conv import UpsampledConv

# The released generators draw every weight from N(0, 0.02).
weight_init = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class Generator(nn.Module):
  """A module from f32[batch, latent] to f32[batch, *shape] in [0, 1].

  Height and width are multiples of `2 ** (len(widths) - 1)`. `widths[0]` is the
  width of the linear layer's map, and each further width that of an upsampling.
  """

  shape: tuple[int, int, int]
  widths: tuple[int, ...] = (128, 128, 64)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z):
    height, width, channels = self.shape
    factor = 2 ** (len(self.widths) - 1)
    small = (height // factor, width // factor, self.widths[0])
    x = nn.Dense(
      small[0] * small[1] * small[2],
      kernel_init=weight_init,
      dtype=self.dtype,
      name="linear",
    )(z)
    x = self._norm("bn0")(x.reshape(z.shape[0], *small))
    for index, width in enumerate(self.widths[1:], 1):
      x = UpsampledConv(
        width, weight_init, False, self.dtype, name=f"conv{index}"
      )(x)
      x = nn.leaky_relu(self._norm(f"bn{index}")(x), 0.2)
    x = nn.Conv(
      channels,
      (3, 3),
      padding=1,
      kernel_init=weight_init,
      dtype=self.dtype,
      name="conv_out",
    )(x)
    return nn.sigmoid(x.astype(jnp.float32))

  def _norm(self, name):
    return BatchStatisticsNorm(dtype=self.dtype, name=name)


class BatchStatisticsNorm(nn.Module):
  """BatchNorm that always uses the mean and variance of the batch."""

  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    scale = self.param("scale", _scale_init, (width,))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    x32 = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = x32.mean(axes)
    var = jnp.square(x32 - mean[(None,) * (x.ndim - 1)]).mean(axes)
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    shift = bias - mean * gain
    full = (None,) * (x.ndim - 1)
    return (x32 * gain[full] + shift[full]).astype(self.dtype)


@struct.dataclass
class GeneratorNetwork:
  """A generator as one pytree: parameters are leaves, the rest is static."""

  params: Any
  module: Generator = struct.field(pytree_node=False)
  latent: int = struct.field(pytree_node=False)


def init(
  key: jax.Array,
  shape: tuple[int, int, int],
  widths: tuple[int, ...],
  latent: int,
) -> GeneratorNetwork:
  """Initialize a generator of images of `shape`: (height, width, channels).

  Raises:
    UsageError: no generator of these widths makes such images.
  """
  if latent < 1 or not widths or min(widths) < 1:
    raise UsageError(
      f"a generator of widths {list(widths)} from {latent} dimensions of noise"
      " cannot be made: give --latent 1 or more and --generator-widths of 1 or"
      " more"
    )
  factor = 2 ** (len(widths) - 1)
  if shape[0] % factor or shape[1] % factor:
    raise UsageError(
      f"--generator-widths has {len(widths)} widths, so {len(widths) - 1}"
      f" upsamplings, which make sides that are multiples of {factor}, and the"
      f" teacher takes {shape[0]}x{shape[1]}: give fewer widths"
    )
  module = Generator(shape, widths)
  variables = module.init(key, jnp.zeros((2, latent)))
  return GeneratorNetwork(variables["params"], module, latent)


def generate(network: GeneratorNetwork, z: jax.Array) -> jax.Array:
  """Map f32[batch, latent] to images in [0, 1].

  They are f32[batch, height, width, channels].
  """
  return network.module.apply({"params": network.params}, z)  # type: ignore


def sample(
  key: jax.Array, network: GeneratorNetwork, batch_size: int
) -> jax.Array:
  """Generate images from `batch_size` draws of unit Gaussian noise."""
  z = jax.random.normal(key, (batch_size, network.latent))
  return generate(network, shard(z))
