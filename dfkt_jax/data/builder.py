"""Any dataset as a TFDS dataset on disk, which is then streamed.

DATA_DIR/NAME/1.0.0 is read by `tfds:NAME`, by `tfds:DATA_DIR/NAME/1.0.0` and by
`tfds.builder(NAME, data_dir=DATA_DIR)`. It is written into a folder beside it,
a shard at a time, and renamed as a whole: a killed run, started again, goes on
at the next shard, and nobody ever reads half a dataset.
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
RECORD = "dfkt.json"  # what the dataset was made of
SHARD_BYTES = 16 * 2**20
"""Of pixels in one shard, before they are compressed."""
MOST_SHARDS = 1024


@dataclasses.dataclass(frozen=True)
class _Spec:
  shape: tuple[int, int, int]
  classes: int
  class_names: tuple[str, ...]


def default_data_dir() -> Path:
  """Where tfds looks: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
  place = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return Path(place).expanduser()


def write(
  name: str,
  splits: Mapping[str, Dataset],
  data_dir: Path,
  overwrite: bool = False,
  shard_bytes: int = SHARD_BYTES,
) -> Path:
  """Writes a dataset of these splits; its directory.

  Images are kept bit by bit, in their order. What is there already and the same
  is left as it is; files of it that are gone or cut short are written again.

  Raises:
    UsageError: a name that tfds does not take, splits that do not fit together,
      or another dataset in this place without `overwrite`.
  """
  check_name(name)
  spec = _common_spec(splits)
  place = data_dir / name / VERSION
  record = {
    "name": name,
    "splits": {split: d.name for split, d in splits.items()},
    "sha256": _digest(splits, spec, shard_bytes),
  }
  directory = _choose(place, record["sha256"], overwrite)
  _remove_leftovers(place, directory)
  sizes = _record(directory).get("bytes", {})
  damaged = [
    path
    for path in (directory / file for file in sizes)
    if not path.exists() or path.stat().st_size != sizes[path.name]
  ]
  if directory == place and sizes and not damaged:
    return place
  for path in damaged:
    path.unlink(missing_ok=True)
  # Without sizes it says that it is not whole.
  files.write_json(directory / RECORD, record)
  written = [
    _write_split(directory, name, split, dataset, spec, shard_bytes)
    for split, dataset in splits.items()
  ]
  shards.finish_all(written)
  made = [path for path in sorted(directory.iterdir()) if path.name != RECORD]
  sizes = {path.name: path.stat().st_size for path in made}
  files.write_json(directory / RECORD, {**record, "bytes": sizes})
  if directory != place:
    _swap(directory, place)
  return place


def _choose(place: Path, sha256: str, overwrite: bool) -> Path:
  """Where to write: what is there is mended, all else is written beside."""
  if _record(place).get("sha256") == sha256:
    return place
  if place.exists() and not overwrite:
    raise UsageError(
      f"{place} holds another dataset: give another name or --data-dir, or"
      " --overwrite to replace it"
    )
  beside = place.with_name(f".{VERSION}.incomplete")
  if beside.exists() and _record(beside).get("sha256") != sha256:
    shutil.rmtree(beside)
  return beside


def _record(directory: Path) -> dict:
  path = directory / RECORD
  return files.read_json(path) if path.exists() else {}


def _remove_leftovers(place: Path, directory: Path) -> None:
  """What a killed run was about to rename or to remove."""
  for old in place.parent.glob(f".{VERSION}.old-*"):
    shutil.rmtree(old, ignore_errors=True)
  for file in directory.glob(".*.tmp"):
    file.unlink(missing_ok=True)


def check_name(name: str) -> None:
  """Refuses a name that tfds would not find the dataset by."""
  tfds = shards.require().tfds
  if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
    raise UsageError(
      f"dataset name {name!r} is not one of tfds: expected small letters,"
      " digits and single underscores, such as my_digits"
    )
  if name in tfds.list_builders(with_community_datasets=False):
    raise UsageError(
      f"dataset name {name!r} is that of a dataset in the tfds catalogue, which"
      f" tfds would look for instead: give another one, such as my_{name}"
    )


def _common_spec(splits: Mapping[str, Dataset]) -> _Spec:
  shapes = {split: d.images.shape[1:] for split, d in splits.items()}
  names = {split: d.class_names for split, d in splits.items()}
  for kind, found in (("images", shapes), ("class names", names)):
    first = next(iter(found))
    for split, value in found.items():
      if value != found[first]:
        raise UsageError(
          f"--split {split} has {kind} {_short(value)} and --split {first}"
          f" {_short(found[first])}: expected the same; give --size if they"
          " are folder: or zip:, or write two datasets"
        )
  for split, dataset in splits.items():
    if dataset.labels.min() < 0:
      raise UsageError(
        f"--split {split} has a label {dataset.labels.min()}: expected classes"
        " from 0; give a dataset with labels"
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
  """The layout of the split and the examples of each shard."""
  images, labels = dataset.images, dataset.labels
  number = min(MOST_SHARDS, len(labels), -(-images.nbytes // shard_bytes))
  layout = shards.Layout(directory, number, spec, name, split)
  ends = [len(labels) * n // number for n in range(number + 1)]
  for shard, (start, stop) in enumerate(zip(ends, ends[1:])):
    # Shards are renamed when they are whole.
    if not layout.path(shard).exists():
      shards.write(layout, shard, images[start:stop], labels[start:stop])
  return layout, np.diff(ends).tolist()


def _swap(beside: Path, place: Path) -> None:
  old = place.with_name(f".{VERSION}.old-{uuid.uuid4().hex[:8]}")
  try:
    if place.exists():
      os.rename(place, old)
    os.rename(beside, place)
  except OSError as error:
    raise files.unwritable(place, error) from error
  shutil.rmtree(old, ignore_errors=True)
