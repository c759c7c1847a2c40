"""A small BatchNorm network for images of 8 pixels and up, for quickstart."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.models.layers import Bottleneck, batch_norm, conv, feature, head


class ConvNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Each width has one 3x3 convolution, BatchNorm and ReLU; the second and third
  convolution halve the image.
  """

  classes: int
  widths: tuple[int, ...]
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    for index, width in enumerate(self.widths, 1):
      stride = 2 if index in (2, 3) else 1
      x = conv(width, 3, stride, name=f"conv{index}", dtype=self.dtype)(x)
      x = nn.relu(batch_norm(train, name=f"bn{index}", dtype=self.dtype)(x))
      feature(self, f"stage{index}", x)
    return head(self, x.mean((1, 2)), self.classes, name="linear", train=train)
