"""VGG with BatchNorm and one linear layer, for images of 32 and 64 pixels.

Simonyan & Zisserman, ICLR 2015, as used in the data-free literature: five
blocks, max pooling after the first three (after the fourth too at 64 pixels),
global average pooling at the end. Convolutions have a bias before BatchNorm.
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
  max_pool,
)

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
  """A module from square images to logits f32[batch, classes].

  Images are f32[batch, side, side, channels] with sides of 32 or 64.
  """

  classes: int
  depths: tuple[int, int, int, int, int]
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    pooled_blocks = (0, 1, 2, 3) if x.shape[1] == 64 else (0, 1, 2)
    for block, (width, depth) in enumerate(zip(WIDTHS, self.depths)):
      for index in range(depth):
        name = f"block{block}_{index}"
        x = conv(width, name=f"{name}_conv", bias=True, dtype=self.dtype)(x)
        x = nn.relu(batch_norm(train, name=f"{name}_bn", dtype=self.dtype)(x))
      feature(self, f"stage{block + 1}", x)
      if block in pooled_blocks:
        x = max_pool(x)
    return head(
      self, x.mean((1, 2)), self.classes, name="classifier", train=train
    )
