"""Conversion of any dataset to a TFDS dataset, which can then be streamed.

DATA_DIR/NAME/1.0.0 is read by `tfds:NAME`, by `tfds:DATA_DIR/NAME/1.0.0` and by
`tfds.builder(NAME, data_dir=DATA_DIR)`. It is written to a temporary folder
next to it, one shard at a time, and the finished folder is renamed. A killed
run, started again, continues with the next shard, and no reader sees half a
dataset.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
from pathlib import Path
import re
import shutil
import uuid

import numpy as np

from dfkt_jax import files
from dfkt_jax.data import shards
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

VERSION = "1.0.0"
RECORD = "dfkt.json"  # the sources of the dataset, and its files
SHARD_BYTES = 16 * 2**20
"""Bytes of pixels in one shard, before compression."""
MAX_SHARDS = 1024


@dataclasses.dataclass(frozen=True)
class _Spec:
  shape: tuple[int, int, int]
  classes: int
  class_names: tuple[str, ...]


def default_data_dir() -> Path:
  """Return the data folder of tfds: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return Path(folder).expanduser()


def write(
  name: str,
  splits: Mapping[str, Dataset],
  data_dir: Path,
  overwrite: bool = False,
  shard_bytes: int = SHARD_BYTES,
) -> Path:
  """Write a dataset with these splits and return its directory.

  Images are kept bit for bit, in their order. If the same dataset exists
  already, only those of its files are written that are missing or cut short.

  Raises:
    UsageError: tfds does not accept the name, the splits do not fit together,
      or another dataset exists at this place and `overwrite` is False.
  """
  check_name(name)
  spec = _common_spec(splits)
  target = data_dir / name / VERSION
  record = {
    "name": name,
    "splits": {split: d.name for split, d in splits.items()},
    "sha256": _digest(splits, spec, shard_bytes),
  }
  directory = _choose_directory(target, record["sha256"], overwrite)
  _remove_leftovers(target, directory)
  sizes = _read_record(directory).get("bytes", {})
  damaged = [
    path
    for path in (directory / file for file in sizes)
    if not path.exists() or path.stat().st_size != sizes[path.name]
  ]
  if directory == target and sizes and not damaged:
    return target
  for path in damaged:
    path.unlink(missing_ok=True)
  # A record without sizes marks a dataset that is not complete.
  files.write_json(directory / RECORD, record)
  written = [
    _write_split(directory, name, split, dataset, spec, shard_bytes)
    for split, dataset in splits.items()
  ]
  shards.finish_all(written)
  made = [path for path in sorted(directory.iterdir()) if path.name != RECORD]
  sizes = {path.name: path.stat().st_size for path in made}
  files.write_json(directory / RECORD, {**record, "bytes": sizes})
  if directory != target:
    _swap(directory, target)
  return target


def _choose_directory(target: Path, sha256: str, overwrite: bool) -> Path:
  """Return the directory to write to.

  It is `target` if that has the same dataset, which is then repaired, and
  otherwise a temporary directory next to it.
  """
  if _read_record(target).get("sha256") == sha256:
    return target
  if target.exists() and not overwrite:
    raise UsageError(
      f"{target} holds another dataset: expected none; give another name or"
      " --data-dir, or --overwrite to replace it"
    )
  temporary = target.with_name(f".{VERSION}.incomplete")
  if temporary.exists() and _read_record(temporary).get("sha256") != sha256:
    shutil.rmtree(temporary)
  return temporary


def _read_record(directory: Path) -> dict:
  path = directory / RECORD
  return files.read_json(path) if path.exists() else {}


def _remove_leftovers(target: Path, directory: Path) -> None:
  """Remove the old and temporary files of a run that was killed."""
  for old in target.parent.glob(f".{VERSION}.old-*"):
    shutil.rmtree(old, ignore_errors=True)
  for file in directory.glob(".*.tmp"):
    file.unlink(missing_ok=True)


def check_name(name: str) -> None:
  """Refuse a name by which tfds would not find the dataset.

  Raises:
    UsageError: the name is malformed, or belongs to a dataset of tfds.
  """
  tfds = shards.require().tfds
  if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
    raise UsageError(
      f"dataset name {name!r} is not valid in tfds: expected small letters,"
      " digits and single underscores; give a name such as my_digits"
    )
  if name in tfds.list_builders(with_community_datasets=False):
    raise UsageError(
      f"dataset name {name!r} belongs to a dataset in the tfds catalog, which"
      " tfds would load instead: expected an unused name; give one such as"
      f" my_{name}"
    )


def _common_spec(splits: Mapping[str, Dataset]) -> _Spec:
  shapes = {split: d.images.shape[1:] for split, d in splits.items()}
  names = {split: d.class_names for split, d in splits.items()}
  for kind, found in (("images", shapes), ("class names", names)):
    first = next(iter(found))
    for split, value in found.items():
      if value != found[first]:
        raise UsageError(
          f"--split {split} has {kind} {_short(value)}, but --split {first} has"
          f" {_short(found[first])}: expected the same; give --size if they"
          " are folder: or zip:, or write two datasets"
        )
  for split, dataset in splits.items():
    if dataset.labels.min() < 0:
      raise UsageError(
        f"--split {split} has the label {dataset.labels.min()}: expected"
        " classes from 0; give a dataset with labels"
      )
  class_names = next(iter(names.values()))
  highest = max(int(d.labels.max()) for d in splits.values())
  return _Spec(
    shape=next(iter(shapes.values())),
    classes=len(class_names) or highest + 1,
    class_names=class_names,
  )


def _short(value):
  text = ", ".join(map(str, value[:4])) or "none"
  return f"{text}, ..." if len(value) > 4 else text


def _digest(splits, spec, shard_bytes):
  digest = hashlib.sha256(repr((spec, shard_bytes)).encode())
  for split, dataset in splits.items():
    digest.update(f"{split} {len(dataset.labels)}".encode())
    digest.update(np.ascontiguousarray(dataset.images).data)
    digest.update(np.ascontiguousarray(dataset.labels).data)
  return digest.hexdigest()


def _write_split(directory, name, split, dataset, spec, shard_bytes):
  """Write the missing shards of a split.

  Returns:
    The layout of the split and the number of examples in each shard.
  """
  images, labels = dataset.images, dataset.labels
  count = min(MAX_SHARDS, len(labels), -(-images.nbytes // shard_bytes))
  layout = shards.Layout(directory, count, spec, name, split)
  ends = [len(labels) * n // count for n in range(count + 1)]
  for shard, (start, stop) in enumerate(zip(ends, ends[1:])):
    # A shard exists only if it is complete.
    if not layout.path(shard).exists():
      shards.write(layout, shard, images[start:stop], labels[start:stop])
  return layout, np.diff(ends).tolist()


def _swap(directory: Path, target: Path) -> None:
  """Rename `directory` to `target` and remove a dataset that was there."""
  old = target.with_name(f".{VERSION}.old-{uuid.uuid4().hex[:8]}")
  try:
    if target.exists():
      os.rename(target, old)
    os.rename(directory, target)
  except OSError as error:
    raise files.unwritable(target, error) from error
  shutil.rmtree(old, ignore_errors=True)
