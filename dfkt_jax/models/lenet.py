"""LeNet-5 and LeNet-5-half, as used in the data-free literature.

LeCun et al., "Gradient-based learning applied to document recognition", 1998,
with ReLU and max pooling. The half network halves every hidden width (Nayak et
al., ICML 2019). There is no BatchNorm. Inputs of 28x28 are padded to the
original 32x32.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.models.layers import Bottleneck, PooledConv, conv, feature, head


class LeNet5(nn.Module):
  """A module from square images to logits f32[batch, classes].

  Images are f32[batch, side, side, channels] with sides of 28 or 32.

  Raises:
    UsageError: images have other sides.
  """

  classes: int
  widths: tuple[int, int, int, int] = (6, 16, 120, 84)
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    c1, c2, c3, f1 = self.widths
    if x.shape[1:3] not in ((28, 28), (32, 32)):
      raise UsageError(
        f"lenet5 takes images of 28x28 or 32x32, not {x.shape[1]}x{x.shape[2]}:"
        " choose another architecture (see 'dfkt list archs')"
      )
    padding = (32 - x.shape[1]) // 2
    x = PooledConv(c1, 5, padding, dtype=self.dtype, name="conv1")(x)
    feature(self, "stage1", x)
    x = PooledConv(c2, 5, dtype=self.dtype, name="conv2")(x)
    feature(self, "stage2", x)
    x = conv(c3, 5, name="conv3", bias=True, padding=0, dtype=self.dtype)(x)
    x = nn.relu(x).reshape(x.shape[0], -1)
    feature(self, "stage3", x)
    x = nn.relu(nn.Dense(f1, dtype=self.dtype, name="fc1")(x))
    return head(self, x, self.classes, name="fc2", train=train)
