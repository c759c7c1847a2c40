"""Conversion of state dicts: equal logits, equal tensors, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.models import ARCHS, IMAGENET, build
from dfkt_jax.network import Classification, InputSpec, Network
from dfkt_jax.teachers import (
  PRESETS,
  extras_of,
  import_file,
  read_state_dict,
  to_network,
  to_state_dict,
  write_pth,
  write_safetensors,
)
from dfkt_jax.teachers.convert import abstract_variables
from tests import assets
from tests.teachers import torch_semantics

AKAMASTER = {
  "resnet20": "resnet20-12fca82f.th",
  "resnet56": "resnet56-4bfd9763.th",
}
CCEXAM = ("ccexam-mnist", "ccexam-usps", "ccexam-svhn")
SEMANTICS = {
  "resnet20": torch_semantics.akamaster,
  "ccexam-mnist": torch_semantics.mnist,
  "ccexam-usps": torch_semantics.usps,
  "ccexam-svhn": torch_semantics.svhn,
}
RGB = InputSpec(
  32, 32, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), Classification(10)
)
SPECS = {
  "ccexam-usps": PRESETS["ccexam-usps"].specs[0],
  "ccexam-mnist": PRESETS["ccexam-mnist"].specs[0],
  "lenet5": InputSpec(28, 28, 1, (0.5,), (0.25,), Classification(10)),
}


def _asset(arch):
  if arch in AKAMASTER:
    return assets.shared_data(AKAMASTER[arch])
  digits = arch.removeprefix("ccexam-")
  return assets.package_file("ccexam", f"weights/{digits}.pth")


def _preset(arch):
  return "akamaster-cifar10" if arch in AKAMASTER else arch


def _import(arch):
  return import_file(_asset(arch), arch, _preset(arch))


def _random_network(arch, seed=0) -> Network:
  """Return a random network without compiling every layer's initializer."""
  spec = SPECS.get(arch, RGB)
  module = build(arch, spec.classes)
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(
    lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32),
    abstract_variables(module, spec),
  )
  return Network(variables, module, spec)


def _images(name, count):
  with np.load(assets.shared_data(name)) as file:
    return file["images"][:count].astype(np.float32) / 255, file["labels"]


def _assert_same_tensors(found, expected):
  assert list(found) == list(expected)
  for key, array in expected.items():
    assert found[key].dtype == array.dtype, key
    assert found[key].shape == array.shape, key
    assert found[key].tobytes() == np.ascontiguousarray(array).tobytes(), key


def _accuracy(network, images, labels, batch=250):
  predict = jax.jit(lambda network, x: net.logits(network, x).argmax(-1))
  correct = 0
  for start in range(0, len(images), batch):
    chunk = images[start : start + batch].astype(np.float32) / 255
    rows = len(chunk)
    # Pad the last batch, which would otherwise be compiled again.
    chunk = np.pad(chunk, ((0, batch - rows), (0, 0), (0, 0), (0, 0)))
    found = np.asarray(predict(network, chunk))[:rows]
    correct += int((found == labels[start : start + rows]).sum())
  return correct / len(images)


@pytest.mark.parametrize("arch", AKAMASTER)
def test_cifar_logits_match_the_released_code(arch):
  network, _ = _import(arch)
  images, _ = _images("cifar10_test1000.npz", 16)
  with jax.default_matmul_precision("highest"):
    found = jax.jit(net.logits)(network, images)
  expected = assets.fixtures()[f"cifar_logits_{arch}"]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_usps_logits_match_the_released_code():
  network, _ = _import("ccexam-usps")
  with np.load(assets.shared_data("usps.npz")) as file:
    images = file["images"][-2007:][:16].astype(np.float32) / 255
  with jax.default_matmul_precision("highest"):
    found = jax.jit(net.logits)(network, images)
  expected = assets.fixtures()["usps_logits_first16"]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", SEMANTICS)
def test_logits_match_torch_semantics_on_the_raw_tensors(arch):
  path = _asset(arch)
  network, _ = import_file(path, arch, _preset(arch))
  state = read_state_dict(path)
  rng = np.random.default_rng(0)
  images = rng.random((4, *network.spec.shape), np.float32)
  x = network.spec.normalize(images).transpose(0, 3, 1, 2)
  with jax.default_matmul_precision("highest"):
    expected = SEMANTICS[arch](state, x)
    found = net.logits(network, images)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_accuracy_on_the_usps_test_images():
  network, _ = _import("ccexam-usps")
  with np.load(assets.shared_data("usps.npz")) as file:
    images, labels = file["images"][-2007:], file["labels"][-2007:]
  accuracy = _accuracy(network, images, labels)
  assert accuracy == pytest.approx(0.9716, abs=0.0005)


def test_accuracy_of_resnet20_on_a_thousand_cifar_images():
  network, _ = _import("resnet20")
  with np.load(assets.shared_data("cifar10_test1000.npz")) as file:
    images, labels = file["images"], file["labels"]
  assert _accuracy(network, images, labels) == pytest.approx(0.915, abs=0.0011)


@pytest.mark.parametrize("arch", [*AKAMASTER, *CCEXAM])
def test_a_published_file_is_exported_bit_for_bit(arch, tmp_path):
  path = _asset(arch)
  source = read_state_dict(path)
  network, card = import_file(path, arch, _preset(arch))
  exported = to_state_dict(network, card.naming, card.extras)
  _assert_same_tensors(exported, source)
  write_pth(tmp_path / "again.pth", exported)
  _assert_same_tensors(read_state_dict(tmp_path / "again.pth"), source)


# Those in IMAGENET are large; test_imagenet.py tests small ones of their kind.
@pytest.mark.parametrize("arch", [a for a in ARCHS if a not in IMAGENET])
def test_every_arch_is_unchanged_by_export_and_import(arch):
  network = _random_network(arch)
  exported = to_state_dict(network)
  assert all(array.flags["C_CONTIGUOUS"] for array in exported.values())
  again = to_network(exported, arch, network.spec, "exported")
  assert jax.tree.structure(again) == jax.tree.structure(network)
  jax.tree.map(np.testing.assert_array_equal, again, network)
  _assert_same_tensors(
    to_state_dict(again, None, extras_of(exported)), exported
  )


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
@pytest.mark.parametrize("arch", ["lenet5", "convnet", "wrn-16-1"])
def test_a_student_is_unchanged_by_writing_and_importing(arch, write, tmp_path):
  network = _random_network(arch)
  name = "net.pth" if write is write_pth else "net.safetensors"
  write(tmp_path / name, to_state_dict(network))
  again, card = import_file(tmp_path / name, arch, network.spec)
  jax.tree.map(np.testing.assert_array_equal, again, network)
  assert card.extras == extras_of(to_state_dict(network))


def test_counters_of_a_network_trained_here_are_zero():
  state = to_state_dict(_random_network("convnet"))
  counters = {k: v for k, v in state.items() if k.endswith("_tracked")}
  assert list(counters) == [f"bn{i}.num_batches_tracked" for i in (1, 2, 3)]
  for value in counters.values():
    assert (value.dtype, value.shape, value) == (np.int64, (), 0)


def test_counters_are_kept_only_if_the_source_has_them():
  network = _random_network("convnet")
  extras = {"num_batches_tracked": {"bn2.num_batches_tracked": 7}}
  state = to_state_dict(network, extras=extras)
  counters = {k: int(v) for k, v in state.items() if k.endswith("_tracked")}
  assert counters == extras["num_batches_tracked"]
  assert extras_of(state) == extras


@pytest.mark.parametrize("classes", [10, 100])
def test_the_head_selects_the_input_spec_of_a_preset(classes):
  spec = PRESETS["datafree-cifar"].spec(classes)
  state = to_state_dict(_with_classes("wrn-16-1", classes))
  network = to_network(state, "wrn-16-1", PRESETS["datafree-cifar"], "f.pth")
  assert network.spec == spec
  assert len(network.spec.class_names) == len(set(spec.class_names)) == classes


def test_a_head_with_other_classes_than_the_preset_is_refused():
  state = to_state_dict(_with_classes("wrn-16-1", 7))
  with pytest.raises(UsageError, match=r"fc.weight has 7 classes.* 10 or 100"):
    to_network(state, "wrn-16-1", PRESETS["datafree-cifar"], "f.pth")


def _with_classes(arch, classes):
  spec = InputSpec(32, 32, 3, RGB.mean, RGB.std, Classification(classes))
  module = build(arch, classes)
  zeros = lambda leaf: np.zeros(leaf.shape, np.float32)
  variables = jax.tree.map(zeros, abstract_variables(module, spec))
  return Network(variables, module, spec)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_floating_types_become_float32(dtype):
  network = _random_network("lenet5")
  state = {k: v.astype(dtype) for k, v in to_state_dict(network).items()}
  again = to_network(state, "lenet5", network.spec, "f.pth")
  for leaf in jax.tree.leaves(again):
    assert leaf.dtype == jnp.float32
  expected = jax.tree.map(lambda x: x.astype(dtype), network.variables)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)),
    again.variables,
    expected,
  )


# Comparison with PyTorch.


@pytest.fixture(scope="module")
def torch():
  return assets.torch()


def _torch_network(arch, classes):
  from tests.teachers import torch_networks as models

  make = {
    "wrn-16-1": lambda: models.WideResNet(16, 1, classes),
    "wrn-16-2": lambda: models.WideResNet(16, 2, classes),
    "vgg8": lambda: models.VGG((1, 1, 1, 1, 1), classes),
    "vgg11": lambda: models.VGG((1, 1, 2, 2, 2), classes),
    "resnet18": lambda: models.ResNet((2, 2, 2, 2), classes),
  }
  return models.randomize(make[arch]())


@pytest.mark.parametrize(
  ("arch", "classes"),
  [("wrn-16-1", 10), ("wrn-16-2", 100), ("vgg8", 10), ("vgg11", 10)]
  + [("resnet18", 10)],
)
def test_logits_and_files_match_pytorch(arch, classes, torch, tmp_path):
  torch.manual_seed(0)
  model = _torch_network(arch, classes)
  torch.save(model.state_dict(), tmp_path / "theirs.pth")
  network, card = import_file(tmp_path / "theirs.pth", arch, "datafree-cifar")
  assert network.spec.classes == classes

  images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
  x = np.asarray(network.spec.normalize(images)).transpose(0, 3, 1, 2)
  with torch.no_grad():
    expected = model(torch.from_numpy(x.copy())).numpy()
  with jax.default_matmul_precision("highest"):
    found = jax.jit(net.logits)(network, images)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

  exported = to_state_dict(network, card.naming, card.extras)
  write_pth(tmp_path / "ours.pth", exported)
  loaded = torch.load(tmp_path / "ours.pth", weights_only=True)
  theirs = {k: v.numpy() for k, v in model.state_dict().items()}
  _assert_same_tensors({k: v.numpy() for k, v in loaded.items()}, theirs)
  _torch_network(arch, classes).load_state_dict(loaded, strict=True)


# Refusals.


def _refused(state, arch="resnet20", preset="akamaster-cifar10"):
  with pytest.raises(UsageError) as info:
    to_network(state, arch, PRESETS[preset], "some/file.pth")
  return str(info.value)


@pytest.fixture
def resnet20():
  return to_state_dict(_random_network("resnet20"))


def test_all_wrong_tensors_are_listed_at_once(resnet20):
  del resnet20["conv1.weight"], resnet20["layer2.0.bn1.running_var"]
  resnet20["fc.bias"] = np.zeros(3, np.float32)
  resnet20["layer1.0.conv1.weight"] = np.zeros((16, 16, 5, 5), np.float32)
  resnet20["bn1.bias"] = np.zeros(16, np.int32)
  resnet20["bn1.num_batches_tracked"] = np.zeros(2, np.float32)
  lines = _refused(resnet20).splitlines()
  assert lines == [
    "some/file.pth is not a resnet20 (2 tensors missing, 1 extra, 3"
    " of the wrong shape): it fits no architecture of dfkt; check the file and"
    " --arch.",
    "missing:",
    "  conv1.weight float[16,3,3,3]",
    "  layer2.0.bn1.running_var float[32]",
    "extra:",
    "  fc.bias float[3]",
    "of the wrong shape:",
    "  bn1.bias: found int[16], expected float[16]",
    "  layer1.0.conv1.weight: found float[16,16,5,5], expected"
    " float[16,16,3,3]",
    "  bn1.num_batches_tracked: found float[2], expected int[]",
  ]


@pytest.mark.parametrize(
  ("arch", "advice"),
  [
    ("resnet56", "it fits --arch resnet56."),
    ("resnet18", "it fits --arch resnet18 --preset datafree-cifar."),
    ("wrn-40-2", "it fits --arch wrn-40-2 --preset datafree-cifar."),
    ("ccexam-usps", "it fits --arch ccexam-usps --preset ccexam-usps."),
    ("lenet5-half", "it fits --arch lenet5-half."),
  ],
)
def test_the_matching_architecture_is_named(arch, advice):
  first = _refused(to_state_dict(_random_network(arch))).splitlines()[0]
  assert first.startswith("some/file.pth is not a resnet20 (")
  assert first.endswith(advice)


def test_a_real_file_of_another_architecture_is_refused():
  path = _asset("resnet56")
  with pytest.raises(UsageError) as info:
    import_file(path, "resnet20", "akamaster-cifar10")
  first = str(info.value).splitlines()[0]
  assert str(path) in first
  assert "0 tensors missing, 180 extra, 0 of the wrong shape" in first
  assert first.endswith("it fits --arch resnet56.")


def test_another_number_of_classes_than_in_the_spec_is_refused(resnet20):
  spec = InputSpec(32, 32, 3, RGB.mean, RGB.std, Classification(100))
  with pytest.raises(UsageError, match="for other images or classes") as info:
    to_network(resnet20, "resnet20", spec, "f.pth")
  assert "linear.bias: found float[10], expected float[100]" in str(info.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(resnet20, value):
  resnet20["layer3.1.bn2.weight"][5:7] = value
  message = _refused(resnet20)
  assert message.startswith("some/file.pth: layer3.1.bn2.weight has 2 values")


def test_values_that_overflow_float32_are_refused(resnet20):
  resnet20["linear.bias"] = np.full(10, 1e300)
  assert "linear.bias has 10 values" in _refused(resnet20)


def test_an_empty_state_dict_is_refused():
  assert "97 tensors missing" in _refused({})


def test_the_default_preset_is_the_one_named_like_the_arch():
  _, card = import_file(_asset("ccexam-mnist"), "ccexam-mnist")
  assert (card.preset, card.naming) == ("ccexam-mnist", "ccexam")
  assert card.input == PRESETS["ccexam-mnist"].specs[0]


@pytest.mark.parametrize(
  ("arch", "preset", "message"),
  [
    ("resnet20", None, "--preset is missing: .* expected akamaster-cifar10"),
    ("wrn-28-10", None, "expected datafree-cifar"),
    ("lenet5", None, "no preset covers it"),
    ("resnet20", "akamaster-cifar", "did you mean 'akamaster-cifar10'"),
    ("resnet18", "akamaster-cifar10", "not for --arch resnet18: expected data"),
    ("ccexam-usps", "ccexam-mnist", "not for --arch ccexam-usps"),
  ],
)
def test_presets_that_do_not_fit_are_refused(arch, preset, message):
  with pytest.raises(UsageError, match=message):
    import_file("never-opened.pth", arch, preset)


def test_an_unknown_architecture_is_refused():
  with pytest.raises(UsageError, match="did you mean 'resnet20'"):
    import_file("never-opened.pth", "resnet-20", None)
