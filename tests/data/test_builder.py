"""Datasets that are written as TFDS datasets and read back unchanged."""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dfkt_jax import data
from dfkt_jax.cli.dispatch import main
from dfkt_jax.data import builder, examples
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError
from tests.data import test_idx


def make_dataset(count=10, shape=(4, 5, 3), names=("cat", "dog"), seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
  return Dataset("made", images, np.arange(count, dtype=np.int32) % 2, names)


def assert_same(a, b):
  np.testing.assert_array_equal(a.images, b.images)
  np.testing.assert_array_equal(a.labels, b.labels)
  assert a.class_names == b.class_names


def test_splits_are_read_back_bit_for_bit(tmp_path):
  train, test = make_dataset(), make_dataset(3, seed=1)
  folder = builder.write(
    "pets", {"train": train, "test": test}, tmp_path, shard_bytes=200
  )
  assert folder == tmp_path / "pets" / "1.0.0"
  assert len(list(folder.glob("*-train.*"))) == 3
  assert_same(data.load(f"tfds:{folder}/train"), train)
  assert_same(data.load(f"tfds:{folder}/test"), test)
  info = tfds.builder("pets", data_dir=tmp_path).info
  assert info.splits["train"].num_examples == 10
  assert "tensorflow" not in sys.modules


def test_idx_files_are_written_unchanged(tmp_path):
  test_idx.write(tmp_path, test_idx.FILES["plain"], count=5)
  dataset = data.load(f"idx:{tmp_path}/train")
  folder = builder.write("five", {"train": dataset}, tmp_path / "d")
  assert_same(data.load(f"tfds:{folder}/train"), dataset)


def test_the_command_writes_and_replaces_a_dataset(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  splits = ["--split", "train=digits/train[:40]", "--split", "test=digits[:9]"]
  main(["data", "write", "small_digits", *splits])
  assert "tfds:small_digits/train" in capsys.readouterr().out
  written, digits = (
    data.load(text) for text in ("tfds:small_digits/train", "digits/train[:40]")
  )
  np.testing.assert_array_equal(written.images, digits.images)
  np.testing.assert_array_equal(written.labels, digits.labels)
  assert len(data.load("tfds:small_digits[2:]").labels) == 7
  main(["data", "write", "small_digits", *splits])  # exists already
  with pytest.raises(SystemExit) as error:
    main(["data", "write", "small_digits", "--split", "train=digits"])
  assert error.value.code == 2
  assert "--overwrite" in capsys.readouterr().err
  main(
    ["data", "write", "small_digits", "--split", "a=digits", "--overwrite"]
    + ["True"]
  )
  assert len(data.load("tfds:small_digits/a").labels) == 500


@pytest.mark.parametrize(
  ("words", "part"),
  [
    (["x_y"], "--split is not given"),
    (["x_y", "--split", "digits"], "expected NAME=DATA"),
    (["x_y", "--split", "all=digits"], "expected NAME=DATA"),
    (["x_y", "--split", "a="], "names no data"),
    (["x_y", "--split", "a=digits", "--split", "a=digits"], "given twice"),
    (["X-Y", "--split", "a=digits"], "is not valid in tfds"),
    (["mnist", "--split", "a=digits"], "catalog"),
    (["x_y", "--split", "a=digits", "--size", "0", "4"], "--size"),
  ],
)
def test_bad_arguments_of_the_command_are_refused(
  tmp_path, capsys, words, part
):
  with pytest.raises(SystemExit) as error:
    main(["data", "write", *words, "--data-dir", str(tmp_path)])
  assert error.value.code == 2
  message = capsys.readouterr().err
  assert part in message
  assert message.count("\n") == 1
  assert not any(tmp_path.iterdir())


def test_splits_that_do_not_fit_together_are_refused(tmp_path):
  for other, part in (
    (make_dataset(shape=(4, 4, 3)), "has images 4, 4, 3"),
    (make_dataset(names=("cat", "eel")), "class names cat, eel"),
  ):
    with pytest.raises(UsageError, match=part):
      builder.write("pets", {"train": make_dataset(), "test": other}, tmp_path)


_WRITE = """
import os, sys
from pathlib import Path
from dfkt_jax.data import builder, shards
from tests.data.test_builder import make_dataset
write = shards.write
def one_then_die(layout, number, *rest):
  write(layout, number, *rest)
  os.kill(os.getpid(), 9)
shards.write = one_then_die
builder.write(
  "pets", {"train": make_dataset()}, Path(sys.argv[1]), shard_bytes=200
)
"""


def test_a_killed_write_continues(tmp_path):
  killed = subprocess.run(
    [sys.executable, "-c", _WRITE, str(tmp_path)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=Path(__file__).parents[2],
  )
  assert killed.returncode == -9
  (shard,) = tmp_path.rglob("*-train.*")
  before = shard.stat().st_mtime_ns
  folder = builder.write(
    "pets", {"train": make_dataset()}, tmp_path, shard_bytes=200
  )
  assert (folder / shard.name).stat().st_mtime_ns == before
  assert_same(data.load(f"tfds:{folder}/train"), make_dataset())


def test_files_that_are_missing_or_cut_short_are_written_again(tmp_path):
  write = lambda: builder.write(
    "pets", {"train": make_dataset()}, tmp_path, shard_bytes=200
  )
  folder = write()
  first, second, third = sorted(folder.glob("*-train.*"))
  before = second.stat().st_mtime_ns
  write()
  assert second.stat().st_mtime_ns == before
  first.unlink()
  third.write_bytes(third.read_bytes()[:-20])
  (folder / "dataset_info.json").unlink()
  assert write() == folder
  assert_same(data.load(f"tfds:{folder}/train"), make_dataset())
  assert second.stat().st_mtime_ns == before


def test_the_same_data_with_another_name_are_the_same_dataset(tmp_path):
  write = lambda name, seed=0: builder.write(
    "pets",
    {"train": dataclasses.replace(make_dataset(seed=seed), name=name)},
    tmp_path,
  )
  assert write("npz:big.npz") == write("npz:./big.npz")
  with pytest.raises(UsageError, match="another dataset"):
    write("npz:big.npz", seed=1)


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
  write = lambda **options: builder.write(
    "pets", {"train": make_dataset()}, tmp_path, shard_bytes=200, **options
  )

  def leave_files(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".pets-train.array_record-0.17.tmp").write_bytes(b"half")
    (directory / ".dfkt.json.17-ab.tmp").write_bytes(b"half")
    (tmp_path / "pets/.1.0.0.old-ab12cd34").mkdir()

  folder = write()
  whole = sorted(path.relative_to(folder) for path in folder.rglob("*"))
  leave_files(folder)
  write()  # to the finished dataset
  os.rename(folder, folder.with_name(".1.0.0.incomplete"))
  leave_files(folder.with_name(".1.0.0.incomplete"))
  write()  # to one that is continued
  assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == whole
  assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]


def test_a_written_dataset_is_opened_for_a_stream(tmp_path):
  folder = builder.write("pets", {"train": make_dataset()}, tmp_path)
  opened = examples.open_examples(f"tfds:{folder}/train[2:7]")
  assert opened is not None
  assert (len(opened), opened.classes, opened.shape) == (5, 2, (4, 5, 3))
  np.testing.assert_array_equal(opened[1][0], make_dataset().images[3])
  assert opened[1][1] == 1
  pixels = make_dataset().images[2:7].reshape(-1, 3) / 255
  mean, std = examples.moments(opened)
  np.testing.assert_allclose(mean, pixels.mean(0))
  np.testing.assert_allclose(std, pixels.std(0))
  assert examples.open_examples("digits/train") is None
  with pytest.raises(UsageError, match="has no image"):
    examples.open_examples(f"tfds:{folder}/train[10:]")
