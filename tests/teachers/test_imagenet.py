"""ImageNet networks compared with PyTorch's names, layouts and logits."""

from functools import partial
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.models.efficientnet_lite import EfficientNetLite
from dfkt_jax.models.imagenet_resnet import ImageNetResNet
from dfkt_jax.models.imagenet_vgg import ImageNetVGG
from dfkt_jax.models.inverted_residual import Stage
from dfkt_jax.models.mobilenet import MobileNetV2
from dfkt_jax.models.vision_transformer import VisionTransformer
from dfkt_jax.network import Classification, InputSpec, Network
from dfkt_jax.teachers import (
  PRESETS,
  Preset,
  extras_of,
  keymap,
  layouts,
  presets,
  to_network,
  to_state_dict,
)
from dfkt_jax.teachers.convert import abstract_variables
from tests import assets

PUBLISHED = [
  (arch, naming)
  for arch in models.IMAGENET
  for naming in keymap.list_namings(models.build(arch, 1000))
]


@pytest.fixture(scope="module")
def torch():
  return assets.torch()


@pytest.mark.parametrize(("arch", "naming"), PUBLISHED)
def test_keys_and_shapes_match_the_published_network(arch, naming, torch):
  from tests.teachers import torch_imagenet

  with torch.device("meta"):
    theirs = torch_imagenet.build(arch, naming).state_dict()
  module = models.build(arch, 1000)
  spec = InputSpec(224, 224, 3, (0.5,) * 3, (0.5,) * 3, Classification(1000))
  variables = abstract_variables(module, spec)
  ours: dict[Any, Any] = traverse_util.flatten_dict(variables)
  found = {}
  for layer in keymap.list_layers(module, naming, spec):
    for tensor in layouts.list_tensors(layer):
      linen = np.broadcast_to(np.float32(0), ours.pop(tensor.linen).shape)
      converted = tensor.to_torch(linen)
      found[tensor.torch] = converted.shape
      assert tensor.to_linen(converted).shape == linen.shape, tensor
    if layer.kind == "batch_norm":
      found[layouts.counter_key(layer)] = ()
  assert not ours
  assert list(found) == list(theirs)
  assert found == {key: tuple(value.shape) for key, value in theirs.items()}


# Small enough to run, with every kind of layer, stride and size of the large.
STAGES = ((1, 8, 1, 1, 3), (6, 12, 2, 2, 3), (6, 16, 2, 2, 5))
OURS = tuple(Stage(w, d, s, e, k) for e, w, d, s, k in STAGES)
TINY = {
  "basic": partial(ImageNetResNet, depths=(2, 1, 1, 1), block="basic", width=8),
  "bottleneck": partial(
    ImageNetResNet, depths=(2, 1, 1, 1), block="bottleneck", width=8
  ),
  "vgg": partial(ImageNetVGG, depths=(1, 2), widths=(8, 16), hidden=24),
  "mobilenet": partial(MobileNetV2, stages=OURS, stem=8, last=40),
  "lite": partial(EfficientNetLite, stages=OURS, stem=8, last=40),
  "vit": partial(VisionTransformer, width=24, depth=2, heads=3),
}
# Halving gives an odd size at some depth; VGG averages 12x17 to 7x7.
SIZES = {"vgg": (48, 68), "vit": (32, 48)}
SIZE = (42, 58)


def _tiny_torch(arch, naming):
  from tests.teachers import torch_imagenet as theirs
  from tests.teachers import torch_vit

  match arch:
    case "basic" | "bottleneck":
      model = theirs.ResNet((2, 1, 1, 1), arch == "bottleneck", 8, classes=10)
    case "vgg":
      model = theirs.VGG((1, 2), (8, 16), 24, classes=10)
    case "mobilenet" if naming == "torchvision":
      model = theirs.MobileNetV2(STAGES, 8, 40, classes=10)
    case "mobilenet" | "lite":
      tf = arch == "lite"
      model = theirs.Inverted(naming, STAGES, 8, 40, tf, classes=10)
    case _:
      model = torch_vit.VIT[naming](24, 2, 3, positions=7, classes=10)
  return theirs.randomize(model)


@pytest.mark.parametrize(
  ("arch", "naming"),
  [
    ("basic", "torchvision"),
    ("bottleneck", "timm"),
    ("vgg", "torchvision"),
    ("mobilenet", "torchvision"),
    ("mobilenet", "timm"),
    ("lite", "timm"),
    ("lite", "efficientnet-pytorch"),
    ("vit", "torchvision"),
    ("vit", "torchvision-v1"),
    ("vit", "timm"),
  ],
)
def test_logits_and_tensors_match_pytorch(arch, naming, torch, monkeypatch):
  monkeypatch.setitem(models.ARCHS, arch, TINY[arch])
  torch.manual_seed(0)
  model = _tiny_torch(arch, naming)
  theirs = {key: value.numpy() for key, value in model.state_dict().items()}
  height, width = SIZES.get(arch, SIZE)
  spec = InputSpec(
    height, width, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), Classification(10)
  )
  preset = Preset("tiny", (arch,), naming, (spec,), "here", "none")
  network = to_network(theirs, arch, preset, "their state dict")

  images = np.random.default_rng(0).random((3, *spec.shape), np.float32)
  x = np.asarray(spec.normalize(images)).transpose(0, 3, 1, 2)
  with torch.no_grad():
    expected = model(torch.from_numpy(x.copy())).numpy()
  with jax.default_matmul_precision("highest"):
    found = np.asarray(jax.jit(net.logits)(network, images))
  atol = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)

  exported = to_state_dict(network, naming, extras_of(theirs))
  assert list(exported) == list(theirs)
  for key, array in theirs.items():
    np.testing.assert_array_equal(exported[key], array, err_msg=key)


def _zeros(arch, naming):
  """Return the state dict of a network of 1000 classes that is all zeros."""
  spec = InputSpec(224, 224, 3, (0.5,) * 3, (0.5,) * 3, Classification(1000))
  module = models.build(arch, 1000)
  zeros = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    abstract_variables(module, spec),
  )
  return to_state_dict(Network(zeros, module, spec), naming)


@pytest.mark.parametrize(
  ("arch", "naming", "preset", "advice"),
  [
    (
      *("mobilenet-v2", "timm", "torchvision-imagenet"),
      "it is a mobilenet-v2 with the tensor names of timm; use --preset"
      " timm-imagenet.",
    ),
    (
      *("efficientnet-lite0", "efficientnet-pytorch", "torchvision-imagenet"),
      "it fits --arch efficientnet-lite0 --preset efficientnet-lite0.",
    ),
    (
      *("vit-tiny-16", "timm", "torchvision-imagenet"),
      "it fits --arch vit-tiny-16 --preset timm-deit.",
    ),
  ],
)
def test_other_tensor_names_are_recognized(arch, naming, preset, advice):
  with pytest.raises(UsageError) as info:
    to_network(_zeros(arch, naming), "mobilenet-v2", PRESETS[preset], "f.pth")
  first = str(info.value).splitlines()[0]
  assert first.startswith("f.pth is not a mobilenet-v2 (")
  assert first.endswith(advice)


@pytest.mark.parametrize("arch", models.IMAGENET)
def test_every_architecture_has_presets(arch):
  found = [PRESETS[name] for name in presets.names_for(arch)]
  assert found
  namings = keymap.list_namings(models.build(arch, 1000))
  for preset in found:
    assert preset.naming in namings
    (spec,) = preset.specs
    assert (spec.classes, spec.channels) == (1000, 3)


def test_lite_presets_normalize_bytes_as_their_authors_did():
  sizes = (224, 240, 260, 280, 300)
  for number, size in enumerate(sizes):
    spec = PRESETS[f"efficientnet-lite{number}"].specs[0]
    assert spec.shape == (size, size, 3)
    pixels = np.full((1, 1, 1, 3), 200, np.float32)
    np.testing.assert_allclose(
      spec.normalize(pixels / 255), (pixels - 127) / 128, rtol=1e-5
    )
