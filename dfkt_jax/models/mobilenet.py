"""MobileNetV2 for ImageNet, as in torchvision and timm.

Sandler et al., CVPR 2018, table 2, with width 1.0; see `inverted_residual`.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.models.inverted_residual import Stage, Style, inverted_residuals
from dfkt_jax.models.layers import Bottleneck, head

STAGES = (
  Stage(16, 1, 1, expand=1),
  Stage(24, 2, 2, expand=6),
  Stage(32, 3, 2, expand=6),
  Stage(64, 4, 2, expand=6),
  Stage(96, 3, 1, expand=6),
  Stage(160, 3, 2, expand=6),
  Stage(320, 1, 1, expand=6),
)
_STYLE = Style(same_padding=False, epsilon=1e-5)


class MobileNetV2(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  `remat` recomputes every block's activations in the backward pass.
  """

  classes: int
  stages: tuple[Stage, ...] = STAGES
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
