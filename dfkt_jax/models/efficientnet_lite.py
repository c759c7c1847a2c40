"""EfficientNet-Lite 0 to 4.

Tan & Le, "EfficientNet", ICML 2019, without squeeze-and-excitation and with
ReLU6 (github.com/tensorflow/tpu, models/official/efficientnet/lite); see
`inverted_residual`. The original is trained in TensorFlow: its padding is SAME
and BatchNorm's epsilon is 1e-3. Unlike in EfficientNet, the first and the last
convolution have the same width, and the first and the last stage the same
depth, in all five.

Deviation: the original drops whole blocks in training, at rates up to 0.2; ours
only has the dropout before the last layer.
"""

import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.models.inverted_residual import Stage, Style, inverted_residuals
from dfkt_jax.models.layers import Bottleneck, head

_LITE0 = (
  Stage(16, 1, 1, expand=1),
  Stage(24, 2, 2, expand=6),
  Stage(40, 2, 2, expand=6, size=5),
  Stage(80, 3, 2, expand=6),
  Stage(112, 3, 1, expand=6, size=5),
  Stage(192, 4, 2, expand=6, size=5),
  Stage(320, 1, 1, expand=6),
)
_STYLE = Style(same_padding=True, epsilon=1e-3)


def scaled(width: float, depth: float) -> tuple[Stage, ...]:
  """Return the stages of Lite0 with widths and depths scaled by factors."""
  first, *inner, last = (
    stage._replace(width=_multiple_of_8(width * stage.width))
    for stage in _LITE0
  )
  deeper = (s._replace(depth=math.ceil(depth * s.depth)) for s in inner)
  return (first, *deeper, last)


def _multiple_of_8(width: float) -> int:
  """Round to the nearest multiple of 8, or up if that loses over a tenth."""
  nearest = max(8, int(width + 4) // 8 * 8)
  return nearest if nearest >= 0.9 * width else nearest + 8


class EfficientNetLite(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  `remat` recomputes every block's activations in the backward pass.
  """

  classes: int
  stages: tuple[Stage, ...]
  stem: int = 32
  last: int = 1280
  dropout: float = 0.2
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    x = inverted_residuals(
      self,
      x,
      train,
      stem=self.stem,
      stages=self.stages,
      last=self.last,
      style=_STYLE,
    )
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return head(self, x, self.classes, name="linear", train=train)
