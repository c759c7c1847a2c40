"""Network directories: saving, loading, and refusal of damaged ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.models import build
from dfkt_jax.network import (
  Classification,
  InputSpec,
  Network,
  Regression,
  Segmentation,
)
from dfkt_jax.teachers import (
  describe,
  digest,
  import_file,
  load,
  read_card,
  save,
  to_state_dict,
)
from dfkt_jax.teachers.convert import abstract_variables
from tests import assets

DIGITS = tuple("0123456789")
SPEC = InputSpec(8, 8, 1, (0.1307,), (0.3081,), Classification(10, DIGITS))


def _network(seed=0, arch="convnet-half"):
  module = build(arch, SPEC.classes)
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    abstract_variables(module, SPEC),
  )
  return Network(variables, module, SPEC)


@pytest.fixture
def network():
  return _network()


@pytest.fixture
def directory(network, tmp_path):
  save(tmp_path / "net", network, describe(network, "convnet-half"))
  return tmp_path / "net"


def _edit(directory, **changes):
  record = json.loads((directory / "card.json").read_text())
  (directory / "card.json").write_text(json.dumps({**record, **changes}))


def _refused(directory):
  with pytest.raises(UsageError) as info:
    load(directory)
  return str(info.value)


def test_a_saved_network_is_loaded_unchanged(network, directory):
  again, card = load(directory)
  assert jax.tree.structure(again) == jax.tree.structure(network)
  jax.tree.map(np.testing.assert_array_equal, again, network)
  assert card == describe(network, "convnet-half")
  assert (card.arch, card.naming) == ("convnet-half", "dfkt")
  assert card.input == SPEC
  assert card.parameters == sum(
    x.size for x in jax.tree.leaves(network.variables["params"])
  )
  assert card.created_by.startswith("dfkt_jax")


def test_the_directory_holds_two_files_in_open_formats(directory):
  assert sorted(p.name for p in directory.iterdir()) == [
    *("card.json", "weights.safetensors"),
  ]
  assert sorted(p.name for p in directory.parent.iterdir()) == ["net"]
  names = load_file(directory / "weights.safetensors")
  assert names["params/conv1/kernel"].shape == (3, 3, 1, 16)
  assert names["batch_stats/bn1/mean"].shape == (16,)
  assert json.loads((directory / "card.json").read_text())["format"] == 1


def test_digest_is_the_checksum_of_the_weights(network, directory, tmp_path):
  assert digest(directory) == files.sha256(directory / "weights.safetensors")
  save(tmp_path / "same", network, describe(network, "convnet-half"))
  assert digest(tmp_path / "same") == digest(directory)
  other = _network(1)
  assert describe(other, "convnet-half").weights_sha256 != digest(directory)


def test_an_imported_file_is_unchanged_by_saving_and_loading(tmp_path):
  path = assets.package_file("ccexam", "weights/usps.pth")
  network, card = import_file(path, "ccexam-usps")
  save(tmp_path / "usps", network, card)
  again, found = load(tmp_path / "usps")
  assert found == card
  assert found.source == "usps.pth"
  assert found.source_sha256 == files.sha256(path)
  assert found.licence == "MIT"
  counters = found.extras["num_batches_tracked"]
  assert counters["features.5.num_batches_tracked"] == 10250
  before = to_state_dict(network, card.naming, card.extras)
  after = to_state_dict(again, found.naming, found.extras)
  assert list(before) == list(after)
  for key, array in before.items():
    assert array.tobytes() == after[key].tobytes()


def test_the_same_network_may_be_saved_again(network, directory):
  card = describe(network, "convnet-half", source="another run")
  save(directory, network, card)
  assert load(directory)[1].source == "another run"
  assert sorted(p.name for p in directory.parent.iterdir()) == ["net"]


def test_another_network_is_replaced_only_if_requested(directory):
  other = _network(1)
  card = describe(other, "convnet-half")
  with pytest.raises(UsageError, match="holds another network"):
    save(directory, other, card)
  assert load(directory)[1].weights_sha256 != card.weights_sha256
  save(directory, other, card, replace=True)
  assert load(directory)[1] == card
  assert sorted(p.name for p in directory.parent.iterdir()) == ["net"]


def test_an_empty_directory_is_filled(network, tmp_path):
  (tmp_path / "empty").mkdir()
  card = describe(network, "convnet-half")
  save(tmp_path / "empty", network, card)
  assert load(tmp_path / "empty")[1] == card


@pytest.mark.parametrize("replace", [False, True])
def test_other_files_are_never_replaced(network, tmp_path, replace):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "1.png").write_bytes(b"precious")
  card = describe(network, "convnet-half")
  with pytest.raises(UsageError, match="not a network directory"):
    save(tmp_path / "photos", network, card, replace=replace)
  with pytest.raises(UsageError, match="not a network directory"):
    save(tmp_path / "photos" / "1.png", network, card, replace=replace)
  assert (tmp_path / "photos" / "1.png").read_bytes() == b"precious"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_card_of_another_network_is_not_written(network, tmp_path):
  card = describe(_network(1), "convnet-half")
  with pytest.raises(ValueError, match="does not describe this network"):
    save(tmp_path / "net", network, card)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_files(network, tmp_path, monkeypatch):
  def fail(path, value):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, "write_json", fail)
  with pytest.raises(Exception, match="No space left"):
    save(tmp_path / "net", network, describe(network, "convnet-half"))
  assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_refused(tmp_path):
  message = _refused(tmp_path / "nowhere")
  assert "nowhere does not exist" in message
  assert "dfkt teacher import" in message


@pytest.mark.parametrize("gone", ["card.json", "weights.safetensors"])
def test_a_directory_with_a_missing_file_is_refused(directory, gone):
  (directory / gone).unlink()
  assert str(directory) in _refused(directory)


def test_a_file_instead_of_a_directory_is_refused(directory):
  message = _refused(directory / "weights.safetensors")
  assert "is not a network directory" in message


def test_weights_that_were_changed_are_refused(directory):
  path = directory / "weights.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  assert "weights.safetensors was changed or cut short" in _refused(directory)
  path.write_bytes(data[: len(data) // 2])
  assert "weights.safetensors was changed or cut short" in _refused(directory)


def test_weights_that_are_not_safetensors_are_refused(directory):
  path = directory / "weights.safetensors"
  path.write_bytes(b"not tensors")
  _edit(directory, weights_sha256=files.sha256(path))
  assert "is not a safetensors file" in _refused(directory)


@pytest.mark.parametrize(
  "change",
  [
    lambda tensors: tensors.pop("params/conv1/kernel"),
    lambda tensors: tensors.update(more=np.zeros(1, np.float32)),
    lambda tensors: tensors.update(
      {"params/bn1/bias": np.zeros(3, np.float32)}
    ),
    lambda tensors: tensors.update({"params/bn1/bias": np.zeros(16)}),
  ],
  ids=["missing", "extra", "shape", "dtype"],
)
def test_weights_of_another_network_are_refused(directory, change):
  path = directory / "weights.safetensors"
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path)
  _edit(directory, weights_sha256=files.sha256(path))
  message = _refused(directory)
  assert "does not hold a convnet-half for 8x8x1 images" in message
  assert "1 tensors differ" in message


def test_a_card_that_is_cut_short_is_refused(directory):
  path = directory / "card.json"
  path.write_text(path.read_text()[:100])
  assert f"{path} is not valid JSON" in _refused(directory)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"format": 2}, "has format 2, expected 1"),
    ({"arch": "resnet21"}, "architecture 'resnet21' is unknown"),
    ({"arch": None}, "arch is None"),
    ({"extras": []}, "is corrupted"),
    ({"input": {}}, "is corrupted"),
    ({"input": None}, "is corrupted"),
  ],
)
def test_a_card_that_was_changed_is_refused(directory, changes, message):
  _edit(directory, **changes)
  found = _refused(directory)
  assert message in found
  assert str(directory / "card.json") in found


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *(
      ("height", "8"),
      ("classes", 0),
      ("channels", True),
      ("mean", [0.1, 0.2]),
    ),
    *(("std", "x"), ("class_names", ["a"]), ("crop", 0.0), ("crop", 1.5)),
    *(("task", "detection"), ("task", "regression"), ("task", ["x"])),
  ],
)
def test_a_card_with_an_impossible_input_is_refused(directory, field, value):
  record = json.loads((directory / "card.json").read_text())["input"]
  _edit(directory, input={**record, field: value})
  assert "is corrupted" in _refused(directory)


def test_a_card_without_a_crop_is_loaded(directory):
  record = json.loads((directory / "card.json").read_text())["input"]
  assert record.pop("crop") == 1.0
  _edit(directory, input=record)
  assert load(directory)[1].input.crop == 1.0


def test_cards_are_compatible_with_version_0_1(directory):
  record = json.loads((directory / "card.json").read_text())["input"]
  assert record.pop("task") == "classification"
  # A card of version 0.1 has exactly these keys of the input.
  assert record == {
    "height": 8,
    "width": 8,
    "channels": 1,
    "mean": [0.1307],
    "std": [0.3081],
    "classes": 10,
    "class_names": list(DIGITS),
    "crop": 1.0,
  }
  _edit(directory, input=record)
  assert load(directory)[1].input == SPEC


@pytest.mark.parametrize(
  "task",
  [
    Regression(10),
    Regression(10, DIGITS, mean=(1.5,) * 10, std=(0.25,) * 10),
    Segmentation(10, DIGITS),
  ],
)
def test_a_card_keeps_the_task(tmp_path, task):
  network = _network()
  spec = dataclasses.replace(network.spec, task=task)
  network = network.replace(spec=spec)
  save(tmp_path / "net", network, describe(network, "convnet-half"))
  found, card = load(tmp_path / "net")
  assert found.spec == card.input == spec


def test_another_json_file_is_refused(tmp_path):
  (tmp_path / "card.json").write_text("[]")
  with pytest.raises(UsageError, match="is not the card of a network"):
    read_card(tmp_path)
