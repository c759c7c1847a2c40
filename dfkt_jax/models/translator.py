"""A translator: a network that changes the style of images.

The generator of CycleGAN (Zhu et al., ICCV 2017; Johnson et al., ECCV 2016):
a 7x7 convolution, two of stride 2, residual blocks, two upsamplings and a 7x7
convolution, with instance normalization (Ulyanov et al. 2016) and ReLU. Inside,
images are in [-1, 1] and the last activation is tanh; outside, in [0, 1].
Deviations: borders are padded with zeros, where the original reflects, and the
image is enlarged by nearest-neighbor upsampling and a 3x3 convolution, where
the original has transposed convolutions.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.models.generator import weight_init
from dfkt_jax.models.upsampled_conv import UpsampledConv

FACTOR = 4  # two convolutions of stride 2


class Translator(nn.Module):
  """A module from f32[batch, height, width, channels] in [0, 1] to the same.

  Height and width are multiples of 4. `width` is that of the first convolution;
  each of the two strided ones doubles it.
  """

  width: int = 32
  blocks: int = 3

  @nn.compact
  def __call__(self, images):
    x = _block(2.0 * images - 1.0, self.width, "in", size=7)
    for index in (1, 2):
      x = _block(x, self.width * 2**index, f"down{index}", stride=2)
    for index in range(self.blocks):
      inner = _block(x, x.shape[-1], f"block{index}_0")
      inner = _conv(inner, x.shape[-1], f"block{index}_1")
      x = x + InstanceNorm(name=f"block{index}_1_norm")(inner)
    for index in (1, 0):
      name, width = f"up{index}", self.width * 2**index
      x = UpsampledConv(width, weight_init, name=name)(x)
      x = nn.relu(InstanceNorm(name=f"{name}_norm")(x))
    # The initial weights are small: the first images are gray.
    x = _conv(x, images.shape[-1], "out", size=7)
    return 0.5 * (jnp.tanh(x) + 1.0)


class InstanceNorm(nn.Module):
  """Each channel of each image at mean 0 and variance 1, then an affine map."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    mean = x.mean((1, 2), keepdims=True)
    variance = x.var((1, 2), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
    full = (None,) * (x.ndim - 1)
    return x * scale[full] + bias[full]


def _block(x, width, name, size=3, stride=1):
  x = _conv(x, width, name, size, stride)
  return nn.relu(InstanceNorm(name=f"{name}_norm")(x))


def _conv(x, width, name, size=3, stride=1):
  return nn.Conv(
    width,
    (size, size),
    strides=stride,
    padding=size // 2,
    kernel_init=weight_init,
    name=name,
  )(x)


@struct.dataclass
class TranslatorNetwork:
  """A translator as one pytree: parameters are leaves, the rest is static."""

  params: Any
  module: Translator = struct.field(pytree_node=False)


def init(
  key: jax.Array, shape: tuple[int, int, int], width: int, blocks: int
) -> TranslatorNetwork:
  """Initialize a translator of images of `shape`: (height, width, channels).

  Raises:
    UsageError: the sides are not multiples of 4.
  """
  if shape[0] % FACTOR or shape[1] % FACTOR:
    raise UsageError(
      f"a translator makes images whose sides are multiples of {FACTOR}, and"
      f" the source takes {shape[0]}x{shape[1]}: give another source"
    )
  module = Translator(width, blocks)
  variables = module.init(key, jnp.zeros((2, *shape)))
  return TranslatorNetwork(variables["params"], module)


def translate(network: TranslatorNetwork, images: jax.Array) -> jax.Array:
  """Map f32[batch, height, width, channels] in [0, 1] to the same."""
  return network.module.apply({"params": network.params}, images)  # type: ignore
