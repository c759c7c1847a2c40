"""Datasets written as TFDS datasets, and read back the same."""

import dataclasses
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dfkt_jax import data
from dfkt_jax.cli import main
from dfkt_jax.data import builder, examples
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError
from tests.data import test_idx


def made(count=10, shape=(4, 5, 3), names=("cat", "dog"), seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
  return Dataset("made", images, np.arange(count, dtype=np.int32) % 2, names)


def same(a, b):
  np.testing.assert_array_equal(a.images, b.images)
  np.testing.assert_array_equal(a.labels, b.labels)
  assert a.class_names == b.class_names


def test_splits_come_back_bit_by_bit(tmp_path):
  train, test = made(), made(3, seed=1)
  place = builder.write(
    "pets", {"train": train, "test": test}, tmp_path, shard_bytes=200
  )
  assert place == tmp_path / "pets" / "1.0.0"
  assert len(list(place.glob("*-train.*"))) == 3
  same(data.load(f"tfds:{place}/train"), train)
  same(data.load(f"tfds:{place}/test"), test)
  info = tfds.builder("pets", data_dir=tmp_path).info
  assert info.splits["train"].num_examples == 10
  assert "tensorflow" not in sys.modules


def test_idx_files_come_back(tmp_path):
  test_idx.write(tmp_path, test_idx.FILES["plain"], count=5)
  dataset = data.load(f"idx:{tmp_path}/train")
  place = builder.write("five", {"train": dataset}, tmp_path / "d")
  same(data.load(f"tfds:{place}/train"), dataset)


def test_the_command(tmp_path, monkeypatch, capsys):
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
  main(["data", "write", "small_digits", *splits])  # is there already
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
    (["X-Y", "--split", "a=digits"], "is not one of tfds"),
    (["mnist", "--split", "a=digits"], "catalogue"),
    (["x_y", "--split", "a=digits", "--size", "0", "4"], "--size"),
  ],
)
def test_what_cannot_be_written(tmp_path, capsys, words, part):
  with pytest.raises(SystemExit) as error:
    main(["data", "write", *words, "--data-dir", str(tmp_path)])
  assert error.value.code == 2
  message = capsys.readouterr().err
  assert part in message
  assert message.count("\n") == 1
  assert not any(tmp_path.iterdir())


def test_splits_that_do_not_fit_together(tmp_path):
  for other, part in (
    (made(shape=(4, 4, 3)), "has images 4, 4, 3"),
    (made(names=("cat", "eel")), "class names cat, eel"),
  ):
    with pytest.raises(UsageError, match=part):
      builder.write("pets", {"train": made(), "test": other}, tmp_path)


_WRITE = """
import os, sys
from pathlib import Path
from dfkt_jax.data import builder, shards
from tests.data.test_builder import made
write = shards.write
def one_then_die(layout, number, *rest):
  write(layout, number, *rest)
  os.kill(os.getpid(), 9)
shards.write = one_then_die
builder.write("pets", {"train": made()}, Path(sys.argv[1]), shard_bytes=200)
"""


def test_a_killed_writing_goes_on(tmp_path):
  killed = subprocess.run(
    [sys.executable, "-c", _WRITE, str(tmp_path)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=Path(__file__).parents[2],
  )
  assert killed.returncode == -9
  (shard,) = tmp_path.rglob("*-train.*")
  before = shard.stat().st_mtime_ns
  place = builder.write("pets", {"train": made()}, tmp_path, shard_bytes=200)
  assert (place / shard.name).stat().st_mtime_ns == before
  same(data.load(f"tfds:{place}/train"), made())


def test_files_that_are_gone_or_short_are_written_again(tmp_path):
  write = lambda: builder.write(
    "pets", {"train": made()}, tmp_path, shard_bytes=200
  )
  place = write()
  first, second, third = sorted(place.glob("*-train.*"))
  before = second.stat().st_mtime_ns
  write()
  assert second.stat().st_mtime_ns == before
  first.unlink()
  third.write_bytes(third.read_bytes()[:-20])
  (place / "dataset_info.json").unlink()
  assert write() == place
  same(data.load(f"tfds:{place}/train"), made())
  assert second.stat().st_mtime_ns == before


def test_the_same_data_by_another_name(tmp_path):
  write = lambda name, seed=0: builder.write(
    "pets",
    {"train": dataclasses.replace(made(seed=seed), name=name)},
    tmp_path,
  )
  assert write("npz:big.npz") == write("npz:./big.npz")
  with pytest.raises(UsageError, match="another dataset"):
    write("npz:big.npz", seed=1)


def test_nothing_is_left_of_a_killed_run(tmp_path):
  write = lambda **options: builder.write(
    "pets", {"train": made()}, tmp_path, shard_bytes=200, **options
  )

  def leave(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".pets-train.array_record-0.17.tmp").write_bytes(b"half")
    (directory / ".dfkt.json.17-ab.tmp").write_bytes(b"half")
    (tmp_path / "pets/.1.0.0.old-ab12cd34").mkdir()

  place = write()
  whole = sorted(path.relative_to(place) for path in place.rglob("*"))
  leave(place)
  write()  # in the finished dataset
  os.rename(place, place.with_name(".1.0.0.incomplete"))
  leave(place.with_name(".1.0.0.incomplete"))
  write()  # in one that goes on
  assert sorted(path.relative_to(place) for path in place.rglob("*")) == whole
  assert [path.name for path in place.parent.iterdir()] == ["1.0.0"]


def test_what_a_stream_reads(tmp_path):
  place = builder.write("pets", {"train": made()}, tmp_path)
  opened = examples.open_examples(f"tfds:{place}/train[2:7]")
  assert opened is not None
  assert (len(opened), opened.classes, opened.shape) == (5, 2, (4, 5, 3))
  np.testing.assert_array_equal(opened[1][0], made().images[3])
  assert opened[1][1] == 1
  pixels = made().images[2:7].reshape(-1, 3) / 255
  mean, std = examples.moments(opened)
  np.testing.assert_allclose(mean, pixels.mean(0))
  np.testing.assert_allclose(std, pixels.std(0))
  assert examples.open_examples("digits/train") is None
  with pytest.raises(UsageError, match="has no image"):
    examples.open_examples(f"tfds:{place}/train[10:]")
