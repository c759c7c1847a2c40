"""What a layer holds in PyTorch and what it holds here, and the layouts."""

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
  """One layer under both names.

  Attributes:
    kind: decides tensors and layouts; "flatten_linear" is a linear layer fed by
      a flattened map, which PyTorch flattens in the order channel, row, column
      and we as row, column, channel; "packed_linear" is the one in front of
      PyTorch's attention, whose names have no dot; "array" is a parameter by
      itself, of one layout.
    torch: prefix in the state dict, without the last dot.
    linen: path of the layer in "params" and "batch_stats".
    bias: whether a convolution has one.
    map_shape: (channels, height, width) of what a "flatten_linear" flattens.
  """

  kind: Kind
  torch: str
  linen: Path
  bias: bool = False
  map_shape: tuple[int, ...] = ()


class Tensor(NamedTuple):
  """One tensor under both names, and the way there and back."""

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


def _same(array):
  return array


def tensors(layer: Layer) -> list[Tensor]:
  """What a layer holds, in the order of a PyTorch state dict.

  `num_batches_tracked`, which has no place in our variables, is not listed.
  """
  entry = lambda torch, collection, linen, there=_same, back=_same: Tensor(
    f"{layer.torch}.{torch}", (collection, *layer.linen, linen), there, back
  )
  bias = entry("bias", "params", "bias")
  match layer.kind:
    case "conv":
      weight = entry("weight", "params", "kernel", conv_to_linen, conv_to_torch)
      return [weight, bias] if layer.bias else [weight]
    case "linear":
      there, back = linear_to_linen, linear_to_torch
      return [entry("weight", "params", "kernel", there, back), bias]
    case "packed_linear":
      path = ("params", *layer.linen)
      return [
        Tensor(
          f"{layer.torch}_weight",
          (*path, "kernel"),
          linear_to_linen,
          linear_to_torch,
        ),
        Tensor(f"{layer.torch}_bias", (*path, "bias"), _same, _same),
      ]
    case "flatten_linear":
      there = partial(flatten_linear_to_linen, map_shape=layer.map_shape)
      back = partial(flatten_linear_to_torch, map_shape=layer.map_shape)
      return [entry("weight", "params", "kernel", there, back), bias]
    case "weight_norm_linear":
      there, back = linear_to_linen, linear_to_torch
      column = lambda scale: scale[:, None]
      return [
        entry("weight_g", "params", "scale", np.ravel, column),
        entry("weight_v", "params", "kernel", there, back),
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
      return [Tensor(layer.torch, ("params", *layer.linen), _same, _same)]


def counter(layer: Layer) -> str:
  """The key of a BatchNorm's `num_batches_tracked`."""
  return f"{layer.torch}.num_batches_tracked"
