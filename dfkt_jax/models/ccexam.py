"""The architectures of the three digit classifiers of ccexam (PyPI, MIT).

Convolutions have a bias; dropout of 0.3 precedes both linear layers, except in
the MNIST network, which has neither dropout nor BatchNorm.
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


class DigitNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  `blocks` holds the widths of the convolutions before each max pooling.
  """

  classes: int
  blocks: tuple[tuple[int, ...], ...]
  hidden: int
  norm: bool = True
  dropout: float = 0.3
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    for block, widths in enumerate(self.blocks):
      for index, width in enumerate(widths):
        name = f"block{block}_{index}"
        x = conv(width, name=f"{name}_conv", bias=True, dtype=self.dtype)(x)
        if self.norm:
          x = batch_norm(train, name=f"{name}_bn", dtype=self.dtype)(x)
        x = nn.relu(x)
      x = max_pool(x)
      feature(self, f"stage{block + 1}", x)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = drop(x.reshape(x.shape[0], -1))
    x = drop(nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)))
    return head(self, x, self.classes, name="fc2", train=train)
