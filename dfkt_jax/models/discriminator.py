"""A patch discriminator: it returns a map of logits, one for a small patch.

Fang et al., "Mosaicking to Distill", NeurIPS 2021; after the patch
discriminator of Isola et al., CVPR 2017. With two strided convolutions a logit
sees 10x10 pixels. BatchNorm always uses the statistics of the batch.
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.models.generator import BatchStatisticsNorm, weight_init


class PatchDiscriminator(nn.Module):
  """A module from f32[batch, height, width, channels] to logits of "real".

  The logits are f32[batch, h, w]. Each of `widths` is a convolution of 4x4 and
  stride 2, the first without BatchNorm.
  """

  widths: tuple[int, ...] = (128, 256)

  @nn.compact
  def __call__(self, x):
    for index, width in enumerate(self.widths):
      x = nn.Conv(
        width,
        (4, 4),
        strides=2,
        padding=1,
        use_bias=not index,
        kernel_init=weight_init,
        name=f"conv{index}",
      )(x)
      if index:
        x = BatchStatisticsNorm(name=f"bn{index}")(x)
      x = nn.leaky_relu(x, 0.2)
    return nn.Conv(
      1, (1, 1), use_bias=False, kernel_init=weight_init, name="conv_out"
    )(x)[..., 0]


@struct.dataclass
class DiscriminatorNetwork:
  """A discriminator as one pytree: parameters are leaves, the rest static."""

  params: Any
  module: PatchDiscriminator = struct.field(pytree_node=False)


def init(
  key: jax.Array, shape: tuple[int, int, int], widths: tuple[int, ...]
) -> DiscriminatorNetwork:
  """Initialize a discriminator of images of `shape`: (height, width, channels).

  Raises:
    UsageError: there are too many strided convolutions for the image.
  """
  require_patches(shape, widths)
  module = PatchDiscriminator(widths)
  variables = module.init(key, jnp.zeros((2, *shape)))
  return DiscriminatorNetwork(variables["params"], module)


def require_patches(
  shape: tuple[int, int, int], widths: tuple[int, ...]
) -> None:
  """Require an image that can be halved once for each of `widths`.

  Raises:
    UsageError: it cannot.
  """
  if min(shape[:2]) >> len(widths) < 1:
    raise UsageError(
      f"--discriminator-widths are {len(widths)} and each halves an image of"
      f" {shape[0]}x{shape[1]}: give fewer"
    )


def logits(network: DiscriminatorNetwork, images: jax.Array) -> jax.Array:
  """Return f32[batch, h, w], positive where a patch seems real."""
  return network.module.apply({"params": network.params}, images)  # type: ignore
