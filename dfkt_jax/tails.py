"""A network's layers and parts, and what it does from one of them on.

Nothing of a network is taken apart: it runs as it is, and what the layer would
have answered, or been given, is exchanged for the vectors. Inside `jit` what
comes before that layer is dead code and costs nothing.
"""

import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.models.layers import (
  BOTTLENECK,
  PooledConv,
  WeightNormDense,
  weight_norm,
)
from dfkt_jax.models.norm import BatchNorm
from dfkt_jax.network import Network, PyTree

Path = tuple[str, ...]
BACKBONE, CLASSIFIER = "backbone", "classifier"
_LAYERS = nn.Dense | nn.Conv | PooledConv | WeightNormDense | BatchNorm


class Layer(NamedTuple):
  path: Path  # of names, as in `params`
  # Of one example's output: (height, width, channels). That of a PooledConv is
  # rectified and pooled.
  shape: tuple[int, ...]
  is_norm: bool  # BatchNorm; else a linear layer or a convolution

  @property
  def is_vector(self) -> bool:
    """One number a channel, in whatever shape."""
    return math.prod(self.shape) == self.shape[-1]


def layers(network: Network) -> list[Layer]:
  """Linear layers, convolutions and BatchNorms in the order of their use."""
  found = []

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    module = context.module
    if isinstance(module, _LAYERS):
      norm = isinstance(module, BatchNorm)
      found.append(Layer(module.path, out.shape[1:], norm))
    return out

  x = jax.ShapeDtypeStruct((2, *network.spec.shape), jnp.float32)
  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda v, x: network.module.apply(v, x, train=False),
      network.variables,
      x,
    )
  # A BatchNorm's call goes through its parent class's: seen twice.
  return list(dict.fromkeys(found))


def parts(network: Network) -> PyTree:
  """The part each parameter belongs to, in the structure of `params`.

  The classifier is the last linear layer; the bottleneck, in networks of the
  sfda recipe, what lies between the features and it; the backbone all else.
  """
  last = layers(network)[-1].path

  def part(path, _):
    names = tuple(key.key for key in path[:-1])
    if names == last:
      return CLASSIFIER
    return BOTTLENECK if names[0].startswith(BOTTLENECK) else BACKBONE

  return jax.tree_util.tree_map_with_path(part, network.params)


def from_output(network: Network, layer: Layer, h: jax.Array) -> Any:
  """Logits where `layer` answers f32[batch, width]; it must be `is_vector`."""
  return _apply(network, layer, lambda _: h.reshape(-1, *layer.shape), h)


def from_input(network: Network, layer: Layer, h: jax.Array) -> Any:
  """Logits where `layer`, a linear one, is given f32[batch, width]."""
  return _apply(network, layer, lambda call: call(h), h)


def _apply(network, layer, answer, h) -> Any:
  def exchange(call, args, kwargs, context):
    if context.module.path == layer.path:
      return answer(call)
    return call(*args, **kwargs)

  x = jnp.zeros((len(h), *network.spec.shape))
  with nn.intercept_methods(exchange):
    return network.module.apply(network.variables, x, train=False)


def classify(network: Network, features: jax.Array) -> jax.Array:
  """f32[n, classes], what the last layer makes of f32[n, width]."""
  last = layers(network)[-1]
  return features @ kernel(network, last) + bias(network, last)[None]


def kernel(network: Network, layer: Layer) -> jax.Array:
  """f32[..., inputs, outputs] of a linear layer or a convolution."""
  params = _at(network.params, layer.path)
  if "scale" in params:
    return weight_norm(params["kernel"], params["scale"])
  return params["kernel"]


def bias(network: Network, layer: Layer) -> jax.Array:
  """f32[outputs]; zero where the layer has none."""
  zero = jnp.zeros(layer.shape[-1])
  return _at(network.params, layer.path).get("bias", zero)


def _at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


def norm_parameters(network: Network, layer: Layer) -> dict[str, jax.Array]:
  """ "mean", "var", "scale" and "bias", f32[channels], of a BatchNorm."""
  return {
    **_at(network.batch_stats, layer.path),
    **_at(network.params, layer.path),
  }
