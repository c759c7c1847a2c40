"""Inverted residuals, the blocks of MobileNetV2 and EfficientNet-Lite.

Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", CVPR
2018: a 1x1 convolution widens, a depthwise convolution filters each channel
separately, and a 1x1 convolution narrows without an activation. The input is
added where it has the output's shape. Activations are ReLU6.
"""

from functools import partial
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models.layers import (
  batch_norm,
  conv,
  feature,
  materialize,
  relu6,
  remat,
)


class Stage(NamedTuple):
  """`depth` blocks of one width; the first has the stride."""

  width: int
  depth: int
  stride: int
  expand: int
  size: int = 3  # of the depthwise convolution


class Style(NamedTuple):
  """The settings of the framework that trained the network."""

  same_padding: bool  # TensorFlow's, which is not symmetric
  epsilon: float  # of BatchNorm


class InvertedResidual(nn.Module):
  """One block; `width` is that of its output, `expand` its inner factor."""

  width: int
  stride: int
  expand: int
  size: int
  style: Style
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    make = partial(_conv, self, train, self.style)
    y, inner = x, self.expand * x.shape[-1]
    if self.expand > 1:
      y = relu6(make("expand", inner, 1)(y))
    depthwise = make("depthwise", inner, self.size, self.stride, groups=inner)
    y = make("project", self.width, 1)(relu6(depthwise(y)))
    return materialize(x + y) if x.shape == y.shape else y


def inverted_residuals(
  module: Any,
  x: jax.Array,
  train: bool,
  *,
  stem: int,
  stages: tuple[Stage, ...],
  last: int,
  style: Style,
) -> jax.Array:
  """Apply a strided 3x3 convolution, the stages, a 1x1 convolution, a mean.

  [b, h, w, c] -> [b, last]. Layers become submodules of `module`, named stem,
  stageI_J and last; it also gets the taps.
  """
  make = partial(_conv, module, train, style)
  x = relu6(make("stem", stem, 3, 2)(x))
  block = remat(InvertedResidual, module.remat)
  for number, stage in enumerate(stages, 1):
    for index in range(stage.depth):
      x = block(
        stage.width,
        1 if index else stage.stride,
        stage.expand,
        stage.size,
        style,
        module.dtype,
        name=f"stage{number}_{index}",
      )(x, train)
    feature(module, f"stage{number}", x)
  return relu6(make("last", last, 1)(x)).mean((1, 2))


def _conv(module, train, style, name, width, size, stride=1, groups=1):
  """Return a convolution followed by its BatchNorm, as a function."""
  convolution = conv(
    width,
    size,
    stride,
    name=f"{name}_conv",
    padding="SAME" if style.same_padding else None,
    groups=groups,
    dtype=module.dtype,
  )
  norm = batch_norm(
    train, name=f"{name}_bn", dtype=module.dtype, epsilon=style.epsilon
  )
  return lambda x: norm(convolution(x))
