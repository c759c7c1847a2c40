"""Architectures by name."""

from collections.abc import Callable, Mapping
import difflib
from functools import partial

from flax import linen as nn

from dfkt_jax.errors import UsageError
from dfkt_jax.models.ccexam import DigitNet
from dfkt_jax.models.convnet import ConvNet
from dfkt_jax.models.efficientnet_lite import EfficientNetLite, scaled
from dfkt_jax.models.generator import Generator
from dfkt_jax.models.imagenet_resnet import Blocks, ImageNetResNet
from dfkt_jax.models.imagenet_vgg import ImageNetVGG
from dfkt_jax.models.layers import Bottleneck
from dfkt_jax.models.lenet import LeNet5
from dfkt_jax.models.mobilenet import MobileNetV2
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.models.shot_digits import DTN, ShotLeNet
from dfkt_jax.models.vgg import VGG
from dfkt_jax.models.vision_transformer import VisionTransformer
from dfkt_jax.models.wide_resnet import WideResNet

__all__ = ["ARCHS", "IMAGENET", "Generator", "build"]


def _cifar_resnet(depth: int) -> Callable[..., nn.Module]:
  n = (depth - 2) // 6
  return partial(ResNet, depths=(n,) * 3, width=16, shortcut="pad")


def _resnet(*depths: int) -> Callable[..., nn.Module]:
  return partial(ResNet, depths=depths, width=64, shortcut="projection")


def _imagenet(block: Blocks, *depths: int) -> Callable[..., nn.Module]:
  return partial(ImageNetResNet, depths=depths, block=block)


def _lite(
  width: float, depth: float, dropout: float
) -> Callable[..., nn.Module]:
  return partial(EfficientNetLite, stages=scaled(width, depth), dropout=dropout)


def _vit(width: int, heads: int) -> Callable[..., nn.Module]:
  return partial(VisionTransformer, width=width, depth=12, heads=heads)


# Networks for images of 224 pixels, or of the size of their preset. Each has a
# field `remat`. A DeiT is a vit.
IMAGENET: Mapping[str, Callable[..., nn.Module]] = {
  "imagenet-resnet18": _imagenet("basic", 2, 2, 2, 2),
  "imagenet-resnet34": _imagenet("basic", 3, 4, 6, 3),
  "imagenet-resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
  "imagenet-resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
  "vgg11-bn": partial(ImageNetVGG, depths=(1, 1, 2, 2, 2)),
  "vgg13-bn": partial(ImageNetVGG, depths=(2, 2, 2, 2, 2)),
  "vgg16-bn": partial(ImageNetVGG, depths=(2, 2, 3, 3, 3)),
  "vgg19-bn": partial(ImageNetVGG, depths=(2, 2, 4, 4, 4)),
  "mobilenet-v2": MobileNetV2,
  "efficientnet-lite0": _lite(1.0, 1.0, 0.2),
  "efficientnet-lite1": _lite(1.0, 1.1, 0.2),
  "efficientnet-lite2": _lite(1.1, 1.2, 0.3),
  "efficientnet-lite3": _lite(1.2, 1.4, 0.3),
  "efficientnet-lite4": _lite(1.4, 1.8, 0.3),
  "vit-tiny-16": _vit(192, 3),
  "vit-small-16": _vit(384, 6),
  "vit-base-16": _vit(768, 12),
}
ARCHS: Mapping[str, Callable[..., nn.Module]] = {
  "lenet5": LeNet5,
  "lenet5-half": partial(LeNet5, widths=(3, 8, 60, 42)),
  "resnet20": _cifar_resnet(20),
  "resnet32": _cifar_resnet(32),
  "resnet44": _cifar_resnet(44),
  "resnet56": _cifar_resnet(56),
  "resnet18": _resnet(2, 2, 2, 2),
  "resnet34": _resnet(3, 4, 6, 3),
  "wrn-16-1": partial(WideResNet, depth=16, widen=1),
  "wrn-16-2": partial(WideResNet, depth=16, widen=2),
  "wrn-40-1": partial(WideResNet, depth=40, widen=1),
  "wrn-40-2": partial(WideResNet, depth=40, widen=2),
  "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
  "vgg11": partial(VGG, depths=(1, 1, 2, 2, 2)),
  "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
  "convnet": partial(ConvNet, widths=(32, 64, 128)),
  "convnet-half": partial(ConvNet, widths=(16, 32, 64)),
  "ccexam-mnist": partial(
    DigitNet, blocks=((32,), (64,)), hidden=128, norm=False, dropout=0.0
  ),
  "ccexam-usps": partial(DigitNet, blocks=((32,), (64,)), hidden=128),
  "ccexam-svhn": partial(
    DigitNet, blocks=((32, 32), (64, 64), (128, 128)), hidden=256
  ),
  "shot-lenet": ShotLeNet,
  "shot-dtn": DTN,
  **IMAGENET,
}
WITH_BOTTLENECK = "+bottleneck"


def build(arch: str, classes: int) -> nn.Module:
  """Build the linen module of an architecture.

  It is called as `module(x, train)` with normalized images f32[batch, height,
  width, channels] and returns logits f32[batch, classes]. The suffix
  "+bottleneck" of a name adds a `layers.Bottleneck` before the classifier.

  Raises:
    UsageError: no architecture has this name.
  """
  if arch.endswith(WITH_BOTTLENECK):
    module = build(arch.removesuffix(WITH_BOTTLENECK), classes)
    return module.clone(bottleneck=Bottleneck())
  if arch in ARCHS:
    return ARCHS[arch](classes=classes)
  if arch.startswith("wrn-"):
    module = _any_wrn(arch, classes)
    if module is not None:
      return module
  close = difflib.get_close_matches(arch, ARCHS, n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  raise UsageError(
    f"architecture {arch!r} is unknown; {hint}expected one of"
    f" {', '.join(ARCHS)} or wrn-DEPTH-WIDEN (see 'dfkt list archs')"
  )


def _any_wrn(arch, classes):
  """Build "wrn-DEPTH-WIDEN"; None if depth or widen are not possible."""
  parts = arch.split("-")[1:]
  if len(parts) != 2 or not all(part.isdigit() for part in parts):
    return None
  depth, widen = map(int, parts)
  if depth < 10 or (depth - 4) % 6 or widen < 1:
    return None
  return WideResNet(classes=classes, depth=depth, widen=widen)
