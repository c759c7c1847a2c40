"""Which PyTorch tensor is which of ours, written down so it reads both ways.

A naming is how one family of PyTorch code calls the layers of a network:

  akamaster  akamaster/pytorch_resnet_cifar10: resnet20, 32, 44, 56
  datafree   zju-vipa's DataFree and its descendants, CIFAR: resnet18, 34,
             wrn-*, vgg8, 11, 13
  ccexam     the PyPI package ccexam: its three digit classifiers
  shot       SHOT's digit networks: shot-lenet, shot-dtn, one dictionary for its
             three files
  dfkt       ours, for what has no PyTorch original: lenet5*, convnet*. Layers
             are called conv1, bn1, ..., fc1, fc2 (lenet5) and linear (convnet)

Bottleneck and classifier of the sfda recipe have one name in all of them:
bottleneck, bottleneck_bn, classifier.

`layers` lists a network's layers in the order of the original's state dict;
`tensors` lists what one layer holds.
"""

from collections.abc import Callable, Mapping
import dataclasses
from functools import partial
from typing import Literal, NamedTuple

from flax import linen as nn
import numpy as np

from dfkt_jax.errors import UsageError
from dfkt_jax.models.ccexam import DigitNet
from dfkt_jax.models.convnet import ConvNet
from dfkt_jax.models.layers import BOTTLENECK
from dfkt_jax.models.lenet import LeNet5
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.models.shot_digits import DTN, ShotLeNet
from dfkt_jax.models.vgg import VGG
from dfkt_jax.models.wide_resnet import WideResNet
from dfkt_jax.network import InputSpec

Path = tuple[str, ...]
Kind = Literal[
  "conv", "linear", "flatten_linear", "weight_norm_linear", "batch_norm"
]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer under both names.

  Attributes:
    kind: decides tensors and layouts; "flatten_linear" is a linear layer fed by
      a flattened map, which PyTorch flattens in the order channel, row, column
      and we as row, column, channel.
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


def counter(layer: Layer) -> str:
  """The key of a BatchNorm's `num_batches_tracked`."""
  return f"{layer.torch}.num_batches_tracked"


# Names, one function an architecture family.


def resnet(module: ResNet, spec: InputSpec) -> list[Layer]:
  """conv1, bn1, layer1.0.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear.

  akamaster's networks have no tensors in the shortcut; its option-A shortcut is
  `shortcut="pad"`.
  """
  result = [
    Layer("conv", "conv1", ("conv1",)),
    Layer("batch_norm", "bn1", ("bn1",)),
  ]
  for stage, depth in enumerate(module.depths, 1):
    for index in range(depth):
      torch, linen = f"layer{stage}.{index}", f"layer{stage}_{index}"
      result += [
        Layer("conv", f"{torch}.conv1", (linen, "conv1")),
        Layer("batch_norm", f"{torch}.bn1", (linen, "bn1")),
        Layer("conv", f"{torch}.conv2", (linen, "conv2")),
        Layer("batch_norm", f"{torch}.bn2", (linen, "bn2")),
      ]
      if module.shortcut == "projection" and stage > 1 and index == 0:
        result += [
          Layer("conv", f"{torch}.shortcut.0", (linen, "shortcut_conv")),
          Layer("batch_norm", f"{torch}.shortcut.1", (linen, "shortcut_bn")),
        ]
  return [*result, Layer("linear", "linear", ("linear",))]


def wide_resnet(module: WideResNet, spec: InputSpec) -> list[Layer]:
  """conv1, block1.layer.0.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc."""
  result = [Layer("conv", "conv1", ("conv1",))]
  for stage in (1, 2, 3):
    for index in range((module.depth - 4) // 6):
      torch, linen = f"block{stage}.layer.{index}", f"block{stage}_{index}"
      result += [
        Layer("batch_norm", f"{torch}.bn1", (linen, "bn1")),
        Layer("conv", f"{torch}.conv1", (linen, "conv1")),
        Layer("batch_norm", f"{torch}.bn2", (linen, "bn2")),
        Layer("conv", f"{torch}.conv2", (linen, "conv2")),
      ]
      # wrn-*-1 keeps the stem's 16 channels throughout its first stage.
      if index == 0 and (stage > 1 or module.widen > 1):
        result.append(
          Layer("conv", f"{torch}.convShortcut", (linen, "shortcut_conv"))
        )
  return [
    *result,
    Layer("batch_norm", "bn1", ("bn1",)),
    Layer("linear", "fc", ("fc",)),
  ]


def vgg(module: VGG, spec: InputSpec) -> list[Layer]:
  """block0.0 (convolution), block0.1 (BatchNorm), block0.3, ..., classifier.

  A block is a sequence of convolution, BatchNorm and ReLU, which has a number
  too.
  """
  result = []
  for block, depth in enumerate(module.depths):
    for index in range(depth):
      torch, linen = f"block{block}", f"block{block}_{index}"
      result += [
        Layer("conv", f"{torch}.{3 * index}", (f"{linen}_conv",), bias=True),
        Layer("batch_norm", f"{torch}.{3 * index + 1}", (f"{linen}_bn",)),
      ]
  return [*result, Layer("linear", "classifier", ("classifier",))]


def digit_net(module: DigitNet, spec: InputSpec) -> list[Layer]:
  """features.0, ..., classifier.1, classifier.4.

  mnist and usps number all of `features` in one sequence, svhn numbers its
  blocks and the layers inside each. ReLU, pooling and dropout have numbers too.
  """
  nested = any(len(widths) > 1 for widths in module.blocks)
  convolution_and_relu = 3 if module.norm else 2
  result, position = [], 0
  for block, widths in enumerate(module.blocks):
    if nested:
      position = 0
    for index in range(len(widths)):
      prefix = f"features.{block}" if nested else "features"
      linen = f"block{block}_{index}"
      torch = f"{prefix}.{position}"
      result.append(Layer("conv", torch, (f"{linen}_conv",), bias=True))
      if module.norm:
        torch = f"{prefix}.{position + 1}"
        result.append(Layer("batch_norm", torch, (f"{linen}_bn",)))
      position += convolution_and_relu
    position += 1  # the pooling
  pooled = 2 ** len(module.blocks)
  flat = (module.blocks[-1][-1], spec.height // pooled, spec.width // pooled)
  first, last = (1, 4) if module.dropout else (0, 2)
  return [
    *result,
    Layer("flatten_linear", f"classifier.{first}", ("fc1",), map_shape=flat),
    Layer("linear", f"classifier.{last}", ("fc2",)),
  ]


def lenet(module: LeNet5, spec: InputSpec) -> list[Layer]:
  """conv1, conv2, conv3, fc1, fc2.

  The map that fc1 is fed is 1x1, so its rows need no reordering.
  """
  return [
    *(Layer("conv", n, (n,), bias=True) for n in ("conv1", "conv2", "conv3")),
    *(Layer("linear", n, (n,)) for n in ("fc1", "fc2")),
  ]


def convnet(module: ConvNet, spec: InputSpec) -> list[Layer]:
  """conv1, bn1, conv2, bn2, conv3, bn3, linear."""
  result = []
  for index in range(1, len(module.widths) + 1):
    result += [
      Layer("conv", f"conv{index}", (f"conv{index}",)),
      Layer("batch_norm", f"bn{index}", (f"bn{index}",)),
    ]
  return [*result, Layer("linear", "linear", ("linear",))]


def shot_lenet(module: ShotLeNet, spec: InputSpec) -> list[Layer]:
  """conv_params.0, conv_params.3; pooling, ReLU and dropout have numbers."""
  side = lambda pixels: ((pixels - 4) // 2 - 4) // 2
  flat = (50, side(spec.height), side(spec.width))
  return [
    Layer("conv", "conv_params.0", ("conv1",), bias=True),
    Layer("conv", "conv_params.3", ("conv2",), bias=True),
    Layer("flatten_linear", "linear", ("linear",), map_shape=flat),
  ]


def dtn(module: DTN, spec: InputSpec) -> list[Layer]:
  """conv_params.0, conv_params.1 (BatchNorm), conv_params.4, ..."""
  side = lambda pixels: -(-pixels // 8)
  flat = (256, side(spec.height), side(spec.width))
  result = []
  for index in range(3):
    conv, norm = f"conv_params.{4 * index}", f"conv_params.{4 * index + 1}"
    result += [
      Layer("conv", conv, (f"conv{index + 1}",), bias=True),
      Layer("batch_norm", norm, (f"bn{index + 1}",)),
    ]
  return [
    *result,
    Layer("flatten_linear", "linear", ("linear",), map_shape=flat),
  ]


def _with_bottleneck(plain: list[Layer]) -> list[Layer]:
  """The linear layer at the end gives way to bottleneck and classifier."""
  *before, linear = plain
  into = dataclasses.replace(linear, torch=BOTTLENECK, linen=(BOTTLENECK,))
  norm = f"{BOTTLENECK}_bn"
  return [
    *before,
    into,
    Layer("batch_norm", norm, (norm,)),
    Layer("weight_norm_linear", "classifier", ("classifier",)),
  ]


Names = Callable[..., list[Layer]]

NAMINGS: Mapping[str, Mapping[type[nn.Module], Names]] = {
  "akamaster": {ResNet: resnet},
  "datafree": {ResNet: resnet, WideResNet: wide_resnet, VGG: vgg},
  "ccexam": {DigitNet: digit_net},
  "shot": {ShotLeNet: shot_lenet, DTN: dtn},
  "dfkt": {LeNet5: lenet, ConvNet: convnet},
}


def default_naming(module: nn.Module) -> str:
  """The naming that a network of ours is exported with.

  Raises:
    UsageError: the module is not one of ours.
  """
  if isinstance(module, ResNet):
    return "akamaster" if module.shortcut == "pad" else "datafree"
  for naming, families in NAMINGS.items():
    if type(module) in families:
      return naming
  raise UsageError(
    f"{type(module).__name__} has no PyTorch names: expected an architecture of"
    " 'dfkt list archs'; add its layers to dfkt_jax/teachers/keymap.py."
  )


def layers(module: nn.Module, naming: str, spec: InputSpec) -> list[Layer]:
  """A network's layers in the order of the original's state dict.

  Raises:
    UsageError: no naming is called so, or it has no names for this module.
  """
  if naming not in NAMINGS:
    raise UsageError(
      f"naming {naming!r} is unknown: expected one of {', '.join(NAMINGS)}."
    )
  names = NAMINGS[naming].get(type(module))
  if names is None:
    raise UsageError(
      f"naming {naming!r} has no names for {type(module).__name__}: use"
      f" {default_naming(module)!r}."
    )
  found = names(module, spec)
  has_bottleneck = getattr(module, "bottleneck", None) is not None
  return _with_bottleneck(found) if has_bottleneck else found
