"""A discriminator of whole images with spectral normalization.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks",
ICLR 2018: every kernel is divided by its largest singular value, so that no
layer stretches its input. One power iteration a training step tracks that
value. There is no BatchNorm, so an image's logit does not depend on the others
of its batch.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from dfkt_jax.models.discriminator import require_patches

SPECTRAL = "spectral"  # the collection of the power iterations' vectors


class SpectralDiscriminator(nn.Module):
  """A module from f32[batch, height, width, channels] to logits of "real".

  The logits are f32[batch]. Each of `widths` is a convolution of 4x4 and stride
  2; a linear layer is last.
  """

  widths: tuple[int, ...] = (64, 128)

  @nn.compact
  def __call__(self, x, train: bool):
    for index, width in enumerate(self.widths):
      conv = nn.Conv(width, (4, 4), strides=2, padding=1, name=f"conv{index}")
      x = nn.leaky_relu(self._normalized(conv)(x, update_stats=train), 0.2)
    linear = self._normalized(nn.Dense(1, name="linear"))
    return linear(x.reshape(len(x), -1), update_stats=train)[:, 0]

  def _normalized(self, layer):
    return nn.SpectralNorm(
      layer, collection_name=SPECTRAL, name=f"{layer.name}_sn"
    )


@struct.dataclass
class SpectralNetwork:
  """A discriminator as one pytree: its arrays are leaves, the rest static."""

  params: Any
  spectral: Any  # a vector and a singular value of every kernel
  module: SpectralDiscriminator = struct.field(pytree_node=False)


def init(
  key: jax.Array, shape: tuple[int, int, int], widths: tuple[int, ...]
) -> SpectralNetwork:
  """Initialize a discriminator of images of `shape`: (height, width, channels).

  Raises:
    UsageError: there are too many strided convolutions for the image.
  """
  require_patches(shape, widths)
  module = SpectralDiscriminator(widths)
  variables = module.init(key, jnp.zeros((2, *shape)), train=False)
  return SpectralNetwork(variables["params"], variables[SPECTRAL], module)


def logits(network: SpectralNetwork, images: jax.Array) -> jax.Array:
  """Return f32[batch], positive where an image seems real."""
  variables = {"params": network.params, SPECTRAL: network.spectral}
  return network.module.apply(variables, images, train=False)  # type: ignore


def train_logits(
  network: SpectralNetwork, images: jax.Array
) -> tuple[jax.Array, SpectralNetwork]:
  """Return the logits, and the network after a power iteration."""
  variables = {"params": network.params, SPECTRAL: network.spectral}
  out, updated = network.module.apply(
    variables, images, train=True, mutable=[SPECTRAL]
  )
  return out, dataclasses.replace(network, spectral=updated[SPECTRAL])  # type: ignore
