"""Residual networks for small images, without pooling before the end.

He et al., "Deep residual learning for image recognition", CVPR 2016, section
4.2, with a 3x3 stem. `shortcut="pad"` is the paper's option A (every second
pixel, channels padded with zeros on both sides, no parameters), "projection"
its option B (1x1 convolution and BatchNorm).
"""

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models.layers import (
  Bottleneck,
  batch_norm,
  conv,
  feature,
  head,
  materialize,
)

Shortcut = Literal["pad", "projection"]


class BasicBlock(nn.Module):
  """A residual block of two 3x3 convolutions."""

  width: int
  stride: int
  shortcut: Shortcut
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    norm = lambda name: batch_norm(train, name=name, dtype=self.dtype)
    make = lambda stride, name: conv(
      self.width, 3, stride, name=name, dtype=self.dtype
    )
    y = nn.relu(norm("bn1")(make(self.stride, "conv1")(x)))
    y = norm("bn2")(make(1, "conv2")(y))
    return materialize(nn.relu(y + skip(x, self, self.width, norm)))


def skip(x, block: Any, width: int, norm: Callable[[str], Any]) -> jax.Array:
  """Return a block's shortcut: [b, h, w, c] -> [b, h / stride, ..., width]."""
  missing = width - x.shape[-1]
  if block.stride == 1 and missing == 0:
    return x
  if block.shortcut == "pad":
    x = x[:, :: block.stride, :: block.stride]
    before = missing // 2
    return jnp.pad(x, ((0, 0),) * 3 + ((before, missing - before),))
  make = conv(width, 1, block.stride, name="shortcut_conv", dtype=block.dtype)
  return norm("shortcut_bn")(make(x))


class ResNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Stage i has `depths[i]` blocks of `width * 2**i` channels.
  """

  classes: int
  depths: tuple[int, ...]
  width: int
  shortcut: Shortcut
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    x = conv(self.width, name="conv1", dtype=self.dtype)(x)
    x = nn.relu(batch_norm(train, name="bn1", dtype=self.dtype)(x))
    for stage, depth in enumerate(self.depths):
      for index in range(depth):
        x = BasicBlock(
          self.width * 2**stage,
          2 if stage and not index else 1,
          self.shortcut,
          self.dtype,
          name=f"layer{stage + 1}_{index}",
        )(x, train)
      feature(self, f"stage{stage + 1}", x)
    return head(self, x.mean((1, 2)), self.classes, name="linear", train=train)
