"""Tiny ArrayRecord datasets, written by tfds and read without TensorFlow."""

import json
from pathlib import Path
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dfkt_jax import data
from dfkt_jax.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 1), np.uint8)
LABELS = [1, 0, 1, 1, 0]
CLASSES = tfds.features.ClassLabel(names=["cat", "dog"])


def tensor(dtype=np.uint8, shape=(4, 3, 1)):
  encoding = tfds.features.Encoding.BYTES
  return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)


def prepare(root, features, splits, supervised_keys=None) -> Path:
  """Write {split: examples} as a dataset `tiny` and return its directory."""

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "tiny"
    pkg_dir_path = root

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=supervised_keys,
      )

    def _split_generators(self, dl_manager):
      return {s: self._generate_examples(s) for s in splits}

    def _generate_examples(self, split):
      yield from enumerate(splits[split])

  tfds.disable_progress_bar()
  builder = Tiny(data_dir=str(root), file_format="array_record")
  builder.download_and_prepare()
  return Path(str(builder.data_dir))


def examples(image="image", label="label", images=IMAGES):
  return [{image: x, label: y} for x, y in zip(images, LABELS)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  rows = examples()
  return prepare(
    tmp_path_factory.mktemp("tfds"),
    {"image": tensor(), "label": CLASSES},
    {"train": rows, "test": rows[:2]},
  )


def refused(text, *parts):
  with pytest.raises(UsageError) as error:
    data.load(text)
  for part in parts:
    assert part in str(error.value)
  assert "\n" not in str(error.value)


def by_pixels(images, labels):
  """Sort examples, which tfds shuffles when it writes them."""
  return sorted((x.tobytes(), int(y)) for x, y in zip(images, labels))


def test_a_prepared_dataset_is_read(prepared):
  dataset = data.load(f"tfds:{prepared}/train")
  assert dataset.images.dtype == np.uint8
  assert dataset.labels.dtype == np.int32
  assert by_pixels(dataset.images, dataset.labels) == by_pixels(IMAGES, LABELS)
  assert dataset.class_names == ("cat", "dog")
  assert len(data.load(f"tfds:{prepared}").labels) == 2  # test
  assert len(data.load(f"tfds:{prepared}/train[1:4]").labels) == 3
  refused(f"tfds:{prepared}/valid", "no split 'valid'", "train, test")
  for part in ("[:10%]", "[1:4:2]"):
    refused(f"tfds:{prepared}/test{part}", "whole numbers", "[:1000]")
  assert "tensorflow" not in sys.modules


def test_supervised_keys_may_have_any_name(tmp_path):
  path = prepare(
    tmp_path,
    {"picture": tensor(), "digit": CLASSES, "image": tfds.features.Text()},
    {"test": [{**row, "image": "-"} for row in examples("picture", "digit")]},
    ("picture", "digit"),
  )
  dataset = data.load(f"tfds:{path}")
  assert by_pixels(dataset.images, dataset.labels) == by_pixels(IMAGES, LABELS)


@pytest.mark.parametrize(
  ("features", "images", "parts"),
  [
    (
      {"image": tensor(np.float32), "label": CLASSES},
      IMAGES.astype(np.float32),
      ["'image' of type float32", "expected uint8"],
    ),
    (
      {"image": tensor(shape=(2, 3, 2)), "label": CLASSES},
      np.zeros((5, 2, 3, 2), np.uint8),
      ["[2, 3, 2]", "1 or 3"],
    ),
    (
      {"image": tensor(), "answer": tfds.features.Text()},
      IMAGES,
      ["has the features answer, image", "expected 'label'"],
    ),
    (
      {"image": tensor(), "label": tensor(np.float32, ())},
      IMAGES,
      ["'label' of type float32", "whole numbers"],
    ),
  ],
)
def test_unsuitable_features_are_refused(tmp_path, features, images, parts):
  label = next(key for key in features if key != "image")
  rows = examples(label=label, images=images)
  rows = (
    [{**r, label: str(r[label])} for r in rows] if label == "answer" else rows
  )
  path = prepare(tmp_path, features, {"test": rows})
  refused(f"tfds:{path}", str(path), *parts)


def test_broken_or_missing_shards_are_refused(prepared, tmp_path):
  copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
  shard = next(copy.glob("*test.array_record*"))
  shard.write_bytes(shard.read_bytes()[:-20])
  refused(f"tfds:{copy}", str(copy), "cannot be read", "prepare it again")
  shard.unlink()
  refused(f"tfds:{copy}", str(copy), "cannot be read", "prepare it again")


def test_a_dataset_in_another_file_format_is_refused(prepared, tmp_path):
  copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
  info = copy / "dataset_info.json"
  content = json.loads(info.read_text())
  info.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
  refused(f"tfds:{copy}", "expected ArrayRecord files", "array_record")


def test_datasets_or_packages_that_are_missing_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
  refused("tfds:mnist", "tfds:mnist is not prepared", str(tmp_path))
  refused(f"tfds:{tmp_path}", "is unknown to tfds", "directory")
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  refused("tfds:mnist", "expected tensorflow-datasets", "pip install")


def test_a_missing_array_record_package_is_named(prepared, monkeypatch):
  def missing(builder, split):
    raise ModuleNotFoundError("No module named 'array_record'")

  monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", missing)
  refused(f"tfds:{prepared}", "No module named 'array_record'", "pip install")
