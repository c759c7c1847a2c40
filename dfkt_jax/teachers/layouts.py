"""Tensors of each kind of layer, with their layouts in PyTorch and in linen."""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

Path = tuple[str, ...]
Kind = Literal[
  "conv",
  "linear",
  "flatten_linear",
  "packed_linear",
  "weight_norm_linear",
  "batch_norm",
  "layer_norm",
  "array",
]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer with its names in PyTorch and in linen.

  Attributes:
    kind: determines tensors and layouts. "flatten_linear" is a linear layer on
      a flattened map: PyTorch flattens in the order channel, row, column, we in
      the order row, column, channel. "packed_linear" is the linear layer before
      PyTorch's attention, whose parameter names have no dot. "array" is a
      single parameter with the same layout in both.
    torch: prefix in the state dict, without the last dot.
    linen: path of the layer in "params" and "batch_stats".
    bias: whether a convolution has a bias.
    map_shape: (channels, height, width) of the map that is flattened before a
      "flatten_linear".
  """

  kind: Kind
  torch: str
  linen: Path
  bias: bool = False
  map_shape: tuple[int, ...] = ()


class Tensor(NamedTuple):
  """One tensor with both names and the conversions between both layouts."""

  torch: str
  linen: Path
  to_linen: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]


# Layouts.


def conv_to_linen(weight: np.ndarray) -> np.ndarray:
  """[out, in, height, width] -> [height, width, in, out]."""
  return weight.transpose(2, 3, 1, 0)


def conv_to_torch(kernel: np.ndarray) -> np.ndarray:
  """[height, width, in, out] -> [out, in, height, width]."""
  return kernel.transpose(3, 2, 0, 1)


def linear_to_linen(weight: np.ndarray) -> np.ndarray:
  """[out, in] -> [in, out]."""
  return weight.T


def linear_to_torch(kernel: np.ndarray) -> np.ndarray:
  """[in, out] -> [out, in]."""
  return kernel.T


def flatten_linear_to_linen(
  weight: np.ndarray, map_shape: tuple[int, ...]
) -> np.ndarray:
  """[out, channels * height * width] -> [height * width * channels, out]."""
  out = weight.shape[0]
  return weight.reshape(out, *map_shape).transpose(2, 3, 1, 0).reshape(-1, out)


def flatten_linear_to_torch(
  kernel: np.ndarray, map_shape: tuple[int, ...]
) -> np.ndarray:
  """[height * width * channels, out] -> [out, channels * height * width]."""
  channels, height, width = map_shape
  out = kernel.shape[1]
  kernel = kernel.reshape(height, width, channels, out)
  return kernel.transpose(3, 2, 0, 1).reshape(out, -1)


def _identity(array):
  return array


def list_tensors(layer: Layer) -> list[Tensor]:
  """Return the tensors of a layer in the order of a PyTorch state dict.

  `num_batches_tracked` is not listed, since our variables do not have it.
  """

  def entry(
    torch, collection, linen, to_linen=_identity, to_torch=_identity
  ) -> Tensor:
    path = (collection, *layer.linen, linen)
    return Tensor(f"{layer.torch}.{torch}", path, to_linen, to_torch)

  kernel = partial(entry, "weight", "params", "kernel")
  bias = entry("bias", "params", "bias")
  match layer.kind:
    case "conv":
      weight = kernel(conv_to_linen, conv_to_torch)
      return [weight, bias] if layer.bias else [weight]
    case "linear":
      return [kernel(linear_to_linen, linear_to_torch), bias]
    case "packed_linear":
      path = ("params", *layer.linen)
      return [
        Tensor(
          f"{layer.torch}_weight",
          (*path, "kernel"),
          linear_to_linen,
          linear_to_torch,
        ),
        Tensor(f"{layer.torch}_bias", (*path, "bias"), _identity, _identity),
      ]
    case "flatten_linear":
      to_linen = partial(flatten_linear_to_linen, map_shape=layer.map_shape)
      to_torch = partial(flatten_linear_to_torch, map_shape=layer.map_shape)
      return [kernel(to_linen, to_torch), bias]
    case "weight_norm_linear":
      column = lambda scale: scale[:, None]
      matrix = linear_to_linen, linear_to_torch
      return [
        entry("weight_g", "params", "scale", np.ravel, column),
        entry("weight_v", "params", "kernel", *matrix),
        bias,
      ]
    case "batch_norm":
      return [
        entry("weight", "params", "scale"),
        bias,
        entry("running_mean", "batch_stats", "mean"),
        entry("running_var", "batch_stats", "var"),
      ]
    case "layer_norm":
      return [entry("weight", "params", "scale"), bias]
    case "array":
      path = ("params", *layer.linen)
      return [Tensor(layer.torch, path, _identity, _identity)]


def counter_key(layer: Layer) -> str:
  """Return the key of a BatchNorm's `num_batches_tracked`."""
  return f"{layer.torch}.num_batches_tracked"
