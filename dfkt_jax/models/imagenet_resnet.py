"""Residual networks for ImageNet, as in torchvision.

He et al., "Deep residual learning for image recognition", CVPR 2016: a 7x7
convolution and a 3x3 max pooling, both of stride 2, then four stages of basic
or bottleneck blocks with projections. In a bottleneck block the 3x3 convolution
has the stride, not the first 1x1 ("v1.5", as in all published PyTorch weights).
"""

from typing import Any, Literal

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.models.layers import (
  Bottleneck,
  batch_norm,
  conv,
  feature,
  head,
  materialize,
  max_pool_3x3,
  remat,
)
from dfkt_jax.models.resnet import BasicBlock, Shortcut, skip

Blocks = Literal["basic", "bottleneck"]
EXPANSION = 4  # of a bottleneck block's last convolution


class BottleneckBlock(nn.Module):
  """A residual block of a 1x1, a 3x3 and a 1x1 convolution.

  `width` is that of the 3x3 convolution, a quarter of the output's.
  """

  width: int
  stride: int
  shortcut: Shortcut
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    norm = lambda name: batch_norm(train, name=name, dtype=self.dtype)
    make = lambda width, size, stride, name: conv(
      width, size, stride, name=name, dtype=self.dtype
    )
    width = EXPANSION * self.width
    y = nn.relu(norm("bn1")(make(self.width, 1, 1, "conv1")(x)))
    y = nn.relu(norm("bn2")(make(self.width, 3, self.stride, "conv2")(y)))
    y = norm("bn3")(make(width, 1, 1, "conv3")(y))
    return materialize(nn.relu(y + skip(x, self, width, norm)))


class ImageNetResNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Stage i has `depths[i]` blocks of width `width * 2**i`. `remat` recomputes
  every block's activations in the backward pass.
  """

  classes: int
  depths: tuple[int, ...]
  block: Blocks
  width: int = 64
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    x = conv(self.width, 7, 2, name="conv1", dtype=self.dtype)(x)
    x = nn.relu(batch_norm(train, name="bn1", dtype=self.dtype)(x))
    x = max_pool_3x3(x)
    kind = BottleneckBlock if self.block == "bottleneck" else BasicBlock
    block = remat(kind, self.remat)
    for stage, depth in enumerate(self.depths):
      for index in range(depth):
        x = block(
          self.width * 2**stage,
          2 if stage and not index else 1,
          "projection",
          self.dtype,
          name=f"layer{stage + 1}_{index}",
        )(x, train)
      feature(self, f"stage{stage + 1}", x)
    return head(self, x.mean((1, 2)), self.classes, name="linear", train=train)
