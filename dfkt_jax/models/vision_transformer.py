"""Vision transformers: ViT and DeiT, which have the same architecture.

Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; Touvron et al.,
"Training data-efficient image transformers", ICML 2021 (without its
distillation token). Blocks are pre-norm with exact GELU, LayerNorm's epsilon is
1e-6, and there are a class token and learned positions. Without BatchNorm, it
only suits methods that do not need it.

Deviation: nothing is dropped in training, neither activations nor blocks.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.models.layers import Bottleneck, feature, head

_init = nn.initializers.truncated_normal(0.02)


class Tokens(nn.Module):
  """The class token and the embedded patches of an image.

  [b, h, w, c] -> [b, 1 + patches, width]. Positions have the number of patches
  of the first call, `init`.
  """

  width: int
  patch: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(
      self.width,
      (self.patch, self.patch),
      strides=self.patch,
      padding=0,
      dtype=self.dtype,
      name="patches",
    )(x)
    x = x.reshape(x.shape[0], -1, self.width)
    zeros = nn.initializers.zeros
    first = self.param("class_token", zeros, (1, 1, self.width))
    shape = (1, 1 + x.shape[1], self.width)
    positions = self.param("positions", _init, shape)
    first = jnp.broadcast_to(first, (x.shape[0], 1, self.width))
    x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
    return x + positions.astype(self.dtype)


class Block(nn.Module):
  """Attention and a perceptron of one hidden layer, each with a shortcut."""

  heads: int
  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    norm = lambda name: layer_norm(name, self.dtype)
    dense = lambda width, name: nn.Dense(
      width, dtype=self.dtype, kernel_init=_init, name=name
    )
    width = x.shape[-1]
    shape = (*x.shape[:2], 3, self.heads, width // self.heads)
    packed = dense(3 * width, "qkv")(norm("norm1")(x)).reshape(shape)
    query, key, value = (packed[:, :, i] for i in range(3))
    y = jax.nn.dot_product_attention(query, key, value)
    x = x + dense(width, "out")(y.reshape(x.shape))
    y = dense(self.hidden, "fc1")(norm("norm2")(x))
    return x + dense(width, "fc2")(nn.gelu(y, approximate=False))


class VisionTransformer(nn.Module):
  """A module from f32[batch, height, width, channels] to f32[batch, classes].

  Sides are multiples of `patch`. `remat` recomputes every block's activations
  in the backward pass.

  Raises:
    UsageError: a side is not a multiple of `patch`.
  """

  classes: int
  width: int
  depth: int
  heads: int
  patch: int = 16
  dtype: Any = jnp.float32
  bottleneck: Bottleneck | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    if x.shape[1] % self.patch or x.shape[2] % self.patch:
      raise UsageError(
        f"a vision transformer of {self.patch}x{self.patch} patches takes sides"
        f" that are multiples of {self.patch}, not {x.shape[1]}x{x.shape[2]}:"
        " choose another architecture (see 'dfkt list archs')"
      )
    x = Tokens(self.width, self.patch, self.dtype, name="tokens")(x)
    block = nn.remat(Block) if self.remat else Block
    for index in range(self.depth):
      x = block(self.heads, 4 * self.width, self.dtype, name=f"block{index}")(x)
      feature(self, f"stage{index + 1}", x)
    # Only the class token is used, and LayerNorm does not mix tokens.
    x = layer_norm("norm", self.dtype)(x[:, 0])
    return head(self, x, self.classes, name="linear", train=train)


def layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
  """Return a LayerNorm of epsilon 1e-6."""
  # The fast variance, E[x^2] - E[x]^2, loses digits.
  return nn.LayerNorm(
    epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name
  )
