"""VGG with BatchNorm for ImageNet, as in torchvision.

Simonyan & Zisserman, ICLR 2015: five blocks of 3x3 convolutions (with a bias
before BatchNorm), each followed by max pooling, and three linear layers with
dropout. Before the linear layers the map is averaged to 7x7, which changes
nothing at 224 pixels.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.models.layers import (
  Bottleneck,
  batch_norm,
  conv,
  feature,
  head,
  max_pool,
  remat,
)
from dfkt_jax.models.vgg import WIDTHS

MAP = 7  # pixels a side of the map that enters the linear layers


class ConvBlock(nn.Module):
  """`depth` convolutions of one width with BatchNorm, and a max pooling."""

  width: int
  depth: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    for index in range(self.depth):
      make = conv(self.width, name=f"conv{index}", bias=True, dtype=self.dtype)
      norm = batch_norm(train, name=f"bn{index}", dtype=self.dtype)
      x = nn.relu(norm(make(x)))
    return max_pool(x)


class ImageNetVGG(nn.Module):
  """A module from square images to logits f32[batch, classes].

  Images are f32[batch, height, width, channels] with sides of 32 or more.

  `remat` recomputes every block's activations in the backward pass.
  """

  classes: int
  depths: tuple[int, ...]
  widths: tuple[int, ...] = WIDTHS
  hidden: int = 4096
  dropout: float = 0.5
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    block = remat(ConvBlock, self.remat)
    for index, (width, depth) in enumerate(zip(self.widths, self.depths)):
      x = block(width, depth, self.dtype, name=f"block{index}")(x, train)
      feature(self, f"stage{index + 1}", x)
    x = average_to(x, MAP)
    x = x.reshape(x.shape[0], -1)
    for name in ("fc1", "fc2"):
      x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=name)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return head(self, x, self.classes, name="fc3", train=train)


def average_to(x: jax.Array, side: int) -> jax.Array:
  """Average [b, h, w, c] to [b, side, side, c].

  This is the adaptive average pooling of PyTorch.
  """
  if x.shape[1:3] == (side, side):
    return x
  rows, columns = (_windows(n, side).astype(x.dtype) for n in x.shape[1:3])
  return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _windows(pixels, side):
  """Return the averaging matrix, f32[side, pixels].

  With n pixels and side s, row i averages from floor(i n / s) to
  ceil((i + 1) n / s). Windows overlap where s does not divide n.
  """
  matrix = np.zeros((side, pixels), np.float32)
  for i in range(side):
    first, last = i * pixels // side, -(-(i + 1) * pixels // side)
    matrix[i, first:last] = 1 / (last - first)
  return matrix
