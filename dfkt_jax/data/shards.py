"""Labelled images as a TFDS dataset of ArrayRecord shards.

`tfds:DIRECTORY` reads it back, as does `tfds.builder_from_directory`. Shards
are written beside and renamed, so any of them may be written again after a
kill; the dataset exists once its metadata does. TensorFlow is not needed.
"""

from collections.abc import Sequence
import dataclasses
import io
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dfkt_jax import files
from dfkt_jax.errors import UsageError

NAME, SPLIT = "synthesized", "train"


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

  def path(self, number: int) -> Path:
    suffix = f"array_record-{number:05d}-of-{self.shards:05d}"
    return self.directory / f"{self.name}-{self.split}.{suffix}"


def write(
  layout: Layout, number: int, images: np.ndarray, labels: np.ndarray
) -> None:
  """Writes shard `number` of u8[n, height, width, channels], i32[n]."""
  writer_class = require().writer
  features = _features(layout.spec)
  path = layout.path(number)
  beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    layout.directory.mkdir(parents=True, exist_ok=True)
    # One record a group: readers look records up singly.
    writer = writer_class(str(beside), "group_size:1")
    for image, label in zip(images, labels):
      example = {"image": _png(image), "label": int(label)}
      encoded = features.encode_example(example)
      writer.write(features.serialize_example(encoded))
    writer.close()
    os.replace(beside, path)
  except OSError as error:
    raise files.unwritable(path, error) from error


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
  tfds.folder_dataset.write_metadata(
    data_dir=str(layout.directory),
    features=_features(layout.spec),
    split_infos=[_split_info(tfds, *split) for split in splits],
    # The folder may yet get its name, so tfds cannot read a version off it.
    version="1.0.0",
    supervised_keys=("image", "label"),
    check_data=False,
  )


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


def _features(spec: Spec) -> Any:
  tfds = require().tfds
  names = spec.class_names or None
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(
        shape=spec.shape, dtype=np.uint8, encoding_format="png"
      ),
      "label": tfds.features.ClassLabel(
        **({"names": names} if names else {"num_classes": spec.classes})
      ),
    }
  )


def _png(image: np.ndarray) -> bytes:
  from PIL import Image

  buffer = io.BytesIO()
  grey = image.shape[-1] == 1
  Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG")
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class _Writers:
  tfds: Any
  writer: Any


def require() -> _Writers:
  """The packages that writing needs, or a UsageError that says so."""
  try:
    from array_record.python.array_record_module import ArrayRecordWriter
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(
      f"writing a dataset needs tensorflow-datasets and grain ({error}): run"
      " pip install tensorflow-datasets grain importlib_resources"
    ) from error
  return _Writers(tfds, ArrayRecordWriter)
