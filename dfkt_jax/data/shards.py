"""Labelled images as a TFDS dataset of ArrayRecord shards.

`tfds:DIRECTORY` reads it back, as does `tfds.builder_from_directory`. Shards
are written beside and renamed, so any of them may be written again after a
kill, and by several processes; the dataset exists once its metadata does.
TensorFlow is not needed.
"""

from collections.abc import Sequence
import dataclasses
import io
import os
from pathlib import Path
import tempfile
from typing import Any, Protocol

import numpy as np

from dfkt_jax import files
from dfkt_jax.errors import UsageError

NAME, SPLIT = "synthesized", "train"
SOFT_LABELS = "soft_labels"  # the feature: f32[classes], logits


class Spec(Protocol):
  """What the examples of a dataset are; an `InputSpec` is one."""

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    ...

  @property
  def classes(self) -> int: ...

  @property
  def class_names(self) -> tuple[str, ...]:
    """One for each class, or none."""
    ...


@dataclasses.dataclass(frozen=True)
class Layout:
  """One split in `shards` files."""

  directory: Path
  shards: int
  spec: Spec
  name: str = NAME
  split: str = SPLIT
  soft_labels: bool = False  # every image has some

  def path(self, number: int) -> Path:
    suffix = f"array_record-{number:05d}-of-{self.shards:05d}"
    return self.directory / f"{self.name}-{self.split}.{suffix}"


def write(
  layout: Layout,
  number: int,
  images: np.ndarray,
  labels: np.ndarray,
  soft_labels: np.ndarray | None = None,
) -> None:
  """Writes shard `number`.

  Args:
    images: u8[n, height, width, channels].
    labels: i32[n].
    soft_labels: f32[n, classes], logits, where the layout has them.
  """
  writer_class = require().writer
  features = _features(layout)
  path = layout.path(number)
  beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    layout.directory.mkdir(parents=True, exist_ok=True)
    # One record a group: readers look records up singly.
    writer = writer_class(str(beside), "group_size:1")
    for index, (image, label) in enumerate(zip(images, labels)):
      example = {"image": _png(image), "label": int(label)}
      if soft_labels is not None:
        example[SOFT_LABELS] = np.asarray(soft_labels[index], np.float32)
      encoded = features.encode_example(example)
      writer.write(features.serialize_example(encoded))
    writer.close()
    os.replace(beside, path)
  except OSError as error:
    raise files.unwritable(path, error) from error


def remove_leftovers(layout: Layout, number: int) -> None:
  """Of writers of this shard that were killed; nobody else may write it now."""
  path = layout.path(number)
  for beside in layout.directory.glob(f".{path.name}.*.tmp"):
    beside.unlink(missing_ok=True)


def count(layout: Layout, number: int) -> int:
  """How many examples a shard has; 0 where its end is missing."""
  reader = require().reader
  try:
    return len(reader(str(layout.path(number))))
  except Exception:  # ArrayRecord raises several kinds
    return 0


def finish(layout: Layout, counts: Sequence[int]) -> None:
  """Writes the metadata, which makes the shards a dataset of one split."""
  finish_all([(layout, counts)])


def finish_all(splits: Sequence[tuple[Layout, Sequence[int]]]) -> None:
  """Writes the metadata of one dataset of several splits.

  Args:
    splits: each with the number of examples of every shard; the layouts differ
      in split and shards only.
  """
  tfds = require().tfds
  layout = splits[0][0]
  # Several processes may come to this at once: none reads half a file.
  with tempfile.TemporaryDirectory() as scratch:
    # tfds reads the names of all shards off one of each split that it finds.
    stand_ins = [Path(scratch, split.path(0).name) for split, _ in splits]
    for path in stand_ins:
      path.touch()
    tfds.folder_dataset.write_metadata(
      data_dir=scratch,
      features=_features(layout),
      split_infos=[_split_info(tfds, *split) for split in splits],
      # The folder may yet get its name, so tfds cannot read a version off it.
      version="1.0.0",
      supervised_keys=("image", "label"),
      check_data=False,
    )
    made = set(Path(scratch).iterdir()) - set(stand_ins)
    for path in sorted(made, key=_comes_last):
      files.write_atomic(layout.directory / path.name, path.read_bytes())


def _comes_last(path):
  # With it there is a dataset.
  return path.name == "dataset_info.json"


def _split_info(tfds, layout, counts):
  template = tfds.core.ShardedFileTemplate(
    data_dir=str(layout.directory),
    dataset_name=layout.name,
    split=layout.split,
    filetype_suffix="array_record",
  )
  paths = [layout.path(number) for number in range(layout.shards)]
  return tfds.core.SplitInfo(
    name=layout.split,
    shard_lengths=list(counts),
    num_bytes=sum(path.stat().st_size for path in paths),
    filename_template=template,
  )


def _features(layout: Layout) -> Any:
  tfds, spec = require().tfds, layout.spec
  names = spec.class_names or None
  features = {
    "image": tfds.features.Image(
      shape=spec.shape, dtype=np.uint8, encoding_format="png"
    ),
    "label": tfds.features.ClassLabel(
      **({"names": names} if names else {"num_classes": spec.classes})
    ),
  }
  if layout.soft_labels:
    features[SOFT_LABELS] = tfds.features.Tensor(
      shape=(spec.classes,), dtype=np.float32
    )
  return tfds.features.FeaturesDict(features)


def _png(image: np.ndarray) -> bytes:
  from PIL import Image

  buffer = io.BytesIO()
  grey = image.shape[-1] == 1
  Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG")
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class _Packages:
  tfds: Any
  writer: Any
  reader: Any


def require() -> _Packages:
  """The packages that writing needs, or a UsageError that says so."""
  try:
    from array_record.python.array_record_data_source import (
      ArrayRecordDataSource,
    )
    from array_record.python.array_record_module import ArrayRecordWriter
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(
      f"writing a dataset needs tensorflow-datasets and grain ({error}): run"
      " pip install tensorflow-datasets grain importlib_resources"
    ) from error
  return _Packages(tfds, ArrayRecordWriter, ArrayRecordDataSource)
