"""Writing of labeled images as a TFDS dataset of ArrayRecord shards.

`tfds:DIRECTORY` and `tfds.builder_from_directory` read it. Shards are written
to temporary files and renamed, so each may be written again after a kill, and
by several processes; the dataset exists once its metadata exist. TensorFlow is
not needed.
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
  """Shape and classes of the examples of a dataset, such as an `InputSpec`."""

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    ...

  @property
  def classes(self) -> int:
    """The number of classes."""
    ...

  @property
  def class_names(self) -> tuple[str, ...]:
    """One name for each class, or an empty tuple."""
    ...


@dataclasses.dataclass(frozen=True)
class Layout:
  """The files of one split."""

  directory: Path
  shards: int  # number of files
  spec: Spec
  name: str = NAME
  split: str = SPLIT
  soft_labels: bool = False  # True: every image has soft labels

  def path(self, number: int) -> Path:
    """Return the path of shard `number`."""
    suffix = f"array_record-{number:05d}-of-{self.shards:05d}"
    return self.directory / f"{self.name}-{self.split}.{suffix}"


def write(
  layout: Layout,
  number: int,
  images: np.ndarray,
  labels: np.ndarray,
  soft_labels: np.ndarray | None = None,
) -> None:
  """Write shard `number`.

  Args:
    images: u8[n, height, width, channels].
    labels: i32[n].
    soft_labels: f32[n, classes], logits, if the layout has them.
  """
  writer_class = require().writer
  features = _features(layout)
  path = layout.path(number)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    layout.directory.mkdir(parents=True, exist_ok=True)
    # One record per group, since readers look up single records.
    writer = writer_class(str(temporary), "group_size:1")
    for index, (image, label) in enumerate(zip(images, labels)):
      example = {"image": _png(image), "label": int(label)}
      if soft_labels is not None:
        example[SOFT_LABELS] = np.asarray(soft_labels[index], np.float32)
      encoded = features.encode_example(example)
      writer.write(features.serialize_example(encoded))
    writer.close()
    os.replace(temporary, path)
  except OSError as error:
    raise files.unwritable(path, error) from error


def remove_leftovers(layout: Layout, number: int) -> None:
  """Remove temporary files of killed writers of a shard.

  No other process may be writing this shard.
  """
  path = layout.path(number)
  for temporary in layout.directory.glob(f".{path.name}.*.tmp"):
    temporary.unlink(missing_ok=True)


def count(layout: Layout, number: int) -> int:
  """Return the number of examples in a shard, 0 if the shard was cut short."""
  reader = require().reader
  try:
    return len(reader(str(layout.path(number))))
  except Exception:  # ArrayRecord raises several kinds
    return 0


def finish(layout: Layout, counts: Sequence[int]) -> None:
  """Write the metadata, which makes the shards a dataset of one split."""
  finish_all([(layout, counts)])


def finish_all(splits: Sequence[tuple[Layout, Sequence[int]]]) -> None:
  """Write the metadata of a dataset of several splits.

  Args:
    splits: layouts with the number of examples of every shard; the layouts
      differ only in split and shards.
  """
  tfds = require().tfds
  layout = splits[0][0]
  # Several processes may do this at once, and no reader may see half a file.
  with tempfile.TemporaryDirectory() as scratch:
    # tfds infers the names of all shards of a split from one that it finds.
    placeholders = [Path(scratch, split.path(0).name) for split, _ in splits]
    for path in placeholders:
      path.touch()
    tfds.folder_dataset.write_metadata(
      data_dir=scratch,
      features=_features(layout),
      split_infos=[_split_info(tfds, *split) for split in splits],
      # The folder may be renamed later, so its name does not have the version.
      version="1.0.0",
      supervised_keys=("image", "label"),
      check_data=False,
    )
    written = set(Path(scratch).iterdir()) - set(placeholders)
    for path in sorted(written, key=_is_last):
      files.write_atomic(layout.directory / path.name, path.read_bytes())


def _is_last(path):
  """Return whether a file is written last, since it makes a dataset exist."""
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
  gray = image.shape[-1] == 1
  Image.fromarray(image[..., 0] if gray else image).save(buffer, "PNG")
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class _Packages:
  tfds: Any
  writer: Any
  reader: Any


def require() -> _Packages:
  """Import the packages that writing needs.

  Raises:
    UsageError: a package is not installed.
  """
  try:
    from array_record.python.array_record_data_source import (
      ArrayRecordDataSource,
    )
    from array_record.python.array_record_module import ArrayRecordWriter
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(
      f"writing a dataset failed to import its packages ({error}): expected"
      " tensorflow-datasets and grain; run pip install tensorflow-datasets"
      " grain importlib_resources"
    ) from error
  return _Packages(tfds, ArrayRecordWriter, ArrayRecordDataSource)
