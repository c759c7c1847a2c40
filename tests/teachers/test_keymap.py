"""Names and layouts of layers in PyTorch and in linen."""

import numpy as np
import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.models import ARCHS, build
from dfkt_jax.network import Classification, InputSpec
from dfkt_jax.teachers import keymap, layouts

RGB = InputSpec(32, 32, 3, (0.5,) * 3, (0.25,) * 3, Classification(10))
GRAY = {
  "ccexam-usps": InputSpec(16, 16, 1, (0.5,), (0.25,), Classification(10)),
  "ccexam-mnist": InputSpec(28, 28, 1, (0.5,), (0.25,), Classification(10)),
}


def _layers(arch):
  module = build(arch, 10)
  spec = GRAY.get(arch, RGB)
  return keymap.list_layers(module, keymap.default_naming(module), spec)


def _names(arch, kind=None):
  return [x.torch for x in _layers(arch) if kind is None or x.kind == kind]


def test_conv_weights_have_their_outputs_last_in_linen():
  weight = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
  kernel = layouts.conv_to_linen(weight)
  assert kernel.shape == (4, 5, 3, 2)
  assert kernel[3, 1, 2, 0] == weight[0, 2, 3, 1]
  np.testing.assert_array_equal(layouts.conv_to_torch(kernel), weight)


def test_linear_weights_are_transposed():
  weight = np.arange(6).reshape(2, 3)
  kernel = layouts.linear_to_linen(weight)
  np.testing.assert_array_equal(kernel, weight.T)
  np.testing.assert_array_equal(layouts.linear_to_torch(kernel), weight)


def test_flatten_linear_gives_the_outputs_of_torch_in_our_order():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(3, 2, 4))  # channels, height, width
  weight = rng.normal(size=(5, image.size))
  kernel = layouts.flatten_linear_to_linen(weight, image.shape)
  ours = image.transpose(1, 2, 0).reshape(-1) @ kernel
  np.testing.assert_allclose(ours, weight @ image.reshape(-1), rtol=1e-12)
  np.testing.assert_array_equal(
    layouts.flatten_linear_to_torch(kernel, image.shape), weight
  )


def test_batch_norm_has_variables_in_two_collections():
  layer = layouts.Layer("batch_norm", "bn1", ("block", "norm"))
  assert {t.torch: t.linen for t in layouts.list_tensors(layer)} == {
    "bn1.weight": ("params", "block", "norm", "scale"),
    "bn1.bias": ("params", "block", "norm", "bias"),
    "bn1.running_mean": ("batch_stats", "block", "norm", "mean"),
    "bn1.running_var": ("batch_stats", "block", "norm", "var"),
  }
  assert layouts.counter_key(layer) == "bn1.num_batches_tracked"


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_has_a_bias_if_its_layer_has_one(bias):
  layer = layouts.Layer("conv", "c", ("c",), bias=bias)
  expected = ["c.weight", "c.bias"] if bias else ["c.weight"]
  assert [t.torch for t in layouts.list_tensors(layer)] == expected


@pytest.mark.parametrize("arch", ARCHS)
def test_no_name_is_used_twice(arch):
  tensors = [t for layer in _layers(arch) for t in layouts.list_tensors(layer)]
  assert len({t.torch for t in tensors}) == len(tensors)
  assert len({t.linen for t in tensors}) == len(tensors)


def test_akamaster_names():
  names = _names("resnet20")
  assert names[:6] == [
    *("conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"),
    "layer1.0.bn2",
  ]
  assert names[-2:] == ["layer3.2.bn2", "linear"]
  assert not any("shortcut" in name for name in names)


def test_datafree_resnet_names():
  names = _names("resnet18")
  shortcuts = [name for name in names if "shortcut" in name]
  assert shortcuts == [
    f"layer{stage}.0.shortcut.{index}"
    for stage in (2, 3, 4)
    for index in (0, 1)
  ]
  assert names[-1] == "linear"


@pytest.mark.parametrize(
  ("arch", "stages"), [("wrn-16-1", (2, 3)), ("wrn-40-2", (1, 2, 3))]
)
def test_datafree_wrn_names(arch, stages):
  names = _names(arch)
  shortcuts = [name for name in names if "Shortcut" in name]
  assert shortcuts == [f"block{s}.layer.0.convShortcut" for s in stages]
  assert names[0] == "conv1"
  assert names[-2:] == ["bn1", "fc"]
  assert "block3.layer.1.bn2" in names


def test_datafree_vgg_names():
  assert _names("vgg11", "conv") == [
    *("block0.0", "block1.0", "block2.0", "block2.3", "block3.0", "block3.3"),
    *("block4.0", "block4.3"),
  ]
  assert _names("vgg11", "batch_norm")[3] == "block2.4"
  assert _names("vgg11")[-1] == "classifier"


def test_ccexam_names():
  assert _names("ccexam-mnist") == [
    *("features.0", "features.3", "classifier.0", "classifier.2"),
  ]
  assert _names("ccexam-usps") == [
    *("features.0", "features.1", "features.4", "features.5"),
    *("classifier.1", "classifier.4"),
  ]
  svhn = [f"features.{b}.{i}" for b in range(3) for i in (0, 1, 3, 4)]
  assert _names("ccexam-svhn") == [*svhn, "classifier.1", "classifier.4"]


@pytest.mark.parametrize(
  ("arch", "shape"),
  [
    ("ccexam-mnist", (64, 7, 7)),
    ("ccexam-usps", (64, 4, 4)),
    ("ccexam-svhn", (128, 4, 4)),
  ],
)
def test_the_shape_that_ccexam_flattens(arch, shape):
  (layer,) = (x for x in _layers(arch) if x.kind == "flatten_linear")
  assert layer.map_shape == shape


def test_an_unknown_naming_is_refused():
  with pytest.raises(UsageError, match="naming 'keras' is unknown: expected"):
    keymap.list_layers(build("resnet20", 10), "keras", RGB)


def test_a_naming_of_another_family_is_refused():
  with pytest.raises(UsageError, match="no names for VGG: use 'datafree'"):
    keymap.list_layers(build("vgg8", 10), "akamaster", RGB)
