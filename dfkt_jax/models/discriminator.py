"""A patch discriminator: a map of logits, each about a small patch.

Fang et al., "Mosaicking to Distill", NeurIPS 2021; after the patch
discriminator of Isola et al., CVPR 2017. At two strided convolutions a logit
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
  """f32[batch, height, width, channels] -> f32[batch, h, w] logits of "real".

  Each of `widths` is a convolution of 4x4 and stride 2, the first without
  BatchNorm.
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
  """A discriminator as one pytree: parameters are leaves, all else static."""

  params: Any
  module: PatchDiscriminator = struct.field(pytree_node=False)


def init(
  key: jax.Array, shape: tuple[int, int, int], widths: tuple[int, ...]
) -> DiscriminatorNetwork:
  """A fresh discriminator of images of `shape`: (height, width, channels).

  Raises:
    UsageError: so many strided convolutions leave no patch of the image.
  """
  require_patches(shape, widths)
  module = PatchDiscriminator(widths)
  variables = module.init(key, jnp.zeros((2, *shape)))
  return DiscriminatorNetwork(variables["params"], module)


def require_patches(
  shape: tuple[int, int, int], widths: tuple[int, ...]
) -> None:
  """Raises UsageError where halving so often leaves nothing of the image."""
  if min(shape[:2]) >> len(widths) < 1:
    raise UsageError(
      f"--discriminator-widths are {len(widths)} and each halves an image of"
      f" {shape[0]}x{shape[1]}: give fewer"
    )


def logits(network: DiscriminatorNetwork, images: jax.Array) -> jax.Array:
  """f32[batch, h, w], positive for patches taken for real."""
  return network.module.apply({"params": network.params}, images)  # type: ignore
