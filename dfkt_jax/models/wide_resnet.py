"""Wide residual networks, WRN-depth-widen.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016: pre-activation
blocks. Where a block changes the number of channels, the output of its first
BatchNorm and ReLU also enters the 1x1 shortcut.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.models.layers import (
  Bottleneck,
  batch_norm,
  conv,
  feature,
  head,
  materialize,
)


class PreActivationBlock(nn.Module):
  """A residual block with BatchNorm and ReLU before each convolution."""

  width: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    norm = lambda name: batch_norm(train, name=name, dtype=self.dtype)
    make = lambda size, stride, name: conv(
      self.width, size, stride, name=name, dtype=self.dtype
    )
    y = nn.relu(norm("bn1")(x))
    shortcut = x
    if x.shape[-1] != self.width:
      shortcut = make(1, self.stride, "shortcut_conv")(y)
    y = nn.relu(norm("bn2")(make(3, self.stride, "conv1")(y)))
    return materialize(shortcut + make(3, 1, "conv2")(y))


class WideResNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  `depth` is 6n + 4; stage i has n blocks of `16 * widen * 2**i` channels.
  """

  classes: int
  depth: int
  widen: int
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    x = conv(16, name="conv1", dtype=self.dtype)(x)
    for stage in range(3):
      for index in range((self.depth - 4) // 6):
        x = PreActivationBlock(
          16 * self.widen * 2**stage,
          2 if stage and not index else 1,
          self.dtype,
          name=f"block{stage + 1}_{index}",
        )(x, train)
      feature(self, f"stage{stage + 1}", x)
    x = nn.relu(batch_norm(train, name="bn1", dtype=self.dtype)(x))
    return head(self, x.mean((1, 2)), self.classes, name="fc", train=train)
