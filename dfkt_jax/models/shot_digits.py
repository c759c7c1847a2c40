"""The two digit networks of SHOT (Liang et al., ICML 2020).

`ShotLeNet` is for MNIST and USPS at 28x28, `DTN` for SVHN at 32x32. Dropout
drops whole channels. A bottleneck with dropout comes before the classifier.
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

BOTTLENECK = Bottleneck(dropout=0.5)


class ShotLeNet(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Two 5x5 convolutions of 20 and 50 channels, each with max pooling and ReLU.
  """

  classes: int
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = BOTTLENECK

  @nn.compact
  def __call__(self, x, train: bool):
    make = lambda width, name: conv(
      width, 5, name=name, bias=True, padding=0, dtype=self.dtype
    )
    x = nn.relu(max_pool(make(20, "conv1")(x)))
    feature(self, "stage1", x)
    x = _drop_channels(make(50, "conv2")(x), 0.5, train)
    x = nn.relu(max_pool(x))
    feature(self, "stage2", x)
    x = x.reshape(x.shape[0], -1)
    return head(self, x, self.classes, name="linear", train=train)


class DTN(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Three 5x5 convolutions of stride 2 with BatchNorm and ReLU.
  """

  classes: int
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = BOTTLENECK

  @nn.compact
  def __call__(self, x, train: bool):
    for index, (width, rate) in enumerate(
      ((64, 0.1), (128, 0.3), (256, 0.5)), 1
    ):
      x = conv(width, 5, 2, name=f"conv{index}", bias=True, dtype=self.dtype)(x)
      x = batch_norm(train, name=f"bn{index}", dtype=self.dtype)(x)
      x = nn.relu(_drop_channels(x, rate, train))
      feature(self, f"stage{index}", x)
    x = x.reshape(x.shape[0], -1)
    return head(self, x, self.classes, name="linear", train=train)


def _drop_channels(x, rate, train):
  """Drop whole channels in training."""
  return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)(x)
