"""A network's layers and parts, and the network from one layer on.

No network is taken apart: it runs as it is, and the output or the input of one
layer is replaced by the given vectors. Inside `jit` all that comes before that
layer is dead code and costs nothing.

A layer is recognized by its parameters, not by its class: a linear layer or a
convolution is a module that owns a parameter "kernel".
"""

import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax.network.network import Network, PyTree, record_calls

Path = tuple[str, ...]
BACKBONE, BOTTLENECK, CLASSIFIER = "backbone", "bottleneck", "classifier"


class Layer(NamedTuple):
  """A linear layer, a convolution or a BatchNorm of a network; static."""

  path: Path  # the names that lead to it in `params`
  # One example's output, such as (height, width, channels). A layer that
  # rectifies and pools (`models.layers.PooledConv`) does so before it returns.
  shape: tuple[int, ...]
  is_norm: bool  # True: BatchNorm; False: linear layer or convolution

  @property
  def is_vector(self) -> bool:
    """Return whether an output has one number a channel, in any shape."""
    return math.prod(self.shape) == self.shape[-1]


def list_layers(network: Network) -> list[Layer]:
  """Return linear layers, convolutions and BatchNorms in the order of use."""

  def layer_of(module, output):
    is_norm = isinstance(module, nn.BatchNorm)
    if is_norm or module.has_variable("params", "kernel"):
      return Layer(module.path, output.shape[1:], is_norm)
    return None

  return record_calls(network, layer_of)


def parts(network: Network) -> PyTree:
  """Return the part each parameter belongs to, in the structure of `params`.

  The classifier is the last linear layer. The bottleneck, in networks of the
  sfda recipe, lies between the features and the classifier. The rest is the
  backbone.
  """
  last = list_layers(network)[-1].path

  def part(path, _):
    names = tuple(key.key for key in path[:-1])
    if names == last:
      return CLASSIFIER
    return BOTTLENECK if names[0].startswith(BOTTLENECK) else BACKBONE

  return jax.tree_util.tree_map_with_path(part, network.params)


def logits_from_output(network: Network, layer: Layer, h: jax.Array) -> Any:
  """Return the logits of f32[batch, width] as the outputs of `layer`.

  The layer must be one that `is_vector`.
  """
  return _replace(network, layer, lambda _: h.reshape(-1, *layer.shape), h)


def logits_from_input(network: Network, layer: Layer, h: jax.Array) -> Any:
  """Return the logits of f32[batch, width] as the inputs of a linear layer."""
  return _replace(network, layer, lambda call: call(h), h)


def _replace(network, layer, output, h) -> Any:
  def replace(call, args, kwargs, context):
    if context.module.path == layer.path:
      return output(call)
    return call(*args, **kwargs)

  x = jnp.zeros((len(h), *network.spec.shape))
  with nn.intercept_methods(replace):
    return network.module.apply(network.variables, x, train=False)


def classify(network: Network, features: jax.Array) -> jax.Array:
  """Return f32[n, classes], the last layer's output for f32[n, width]."""
  last = list_layers(network)[-1]
  return features @ kernel(network, last) + bias(network, last)[None]


def kernel(network: Network, layer: Layer) -> jax.Array:
  """Return f32[..., inputs, outputs] of a linear layer or a convolution."""
  params = _at(network.params, layer.path)
  if "scale" in params:
    return weight_norm(params["kernel"], params["scale"])
  return params["kernel"]


def weight_norm(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """Return f32[inputs, outputs] with columns of length `scale`.

  Weight normalization (Salimans and Kingma, NeurIPS 2016): column k is
  scale_k kernel_k / |kernel_k|.
  """
  return kernel * (scale / jnp.linalg.norm(kernel, axis=0))[None]


def bias(network: Network, layer: Layer) -> jax.Array:
  """Return f32[outputs]; zeros where the layer has no bias."""
  zero = jnp.zeros(layer.shape[-1])
  return _at(network.params, layer.path).get("bias", zero)


def norm_parameters(network: Network, layer: Layer) -> dict[str, jax.Array]:
  """Return "mean", "var", "scale" and "bias", f32[channels], of a BatchNorm."""
  return {
    **_at(network.batch_stats, layer.path),
    **_at(network.params, layer.path),
  }


def _at(tree, path):
  for name in path:
    tree = tree[name]
  return tree
