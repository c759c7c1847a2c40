"""Synthesised images as a TFDS dataset, one ArrayRecord shard a batch.

`tfds:DIRECTORY` reads it back, as does `tfds.builder_from_directory`. Shards
are written beside and renamed, so any of them may be written again after a
kill; the dataset exists once its metadata does. TensorFlow is not needed.
"""

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec

NAME, SPLIT = "synthesized", "train"


@dataclasses.dataclass(frozen=True)
class Layout:
  directory: Path
  shards: int
  spec: InputSpec


def write(
  layout: Layout, number: int, images: np.ndarray, labels: np.ndarray
) -> None:
  """Writes shard `number` of u8[n, height, width, channels], i32[n]."""
  writer_class = require().writer
  features = _features(layout.spec)
  name = f"{NAME}-{SPLIT}.array_record-{number:05d}-of-{layout.shards:05d}"
  path = layout.directory / name
  beside = path.with_name(f".{name}.{os.getpid()}.tmp")
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


def finish(layout: Layout, counts: list[int]) -> None:
  """Writes the metadata, which makes the shards a dataset."""
  tfds = require().tfds
  template = tfds.core.ShardedFileTemplate(
    data_dir=str(layout.directory),
    dataset_name=NAME,
    split=SPLIT,
    filetype_suffix="array_record",
  )
  split = tfds.core.SplitInfo(
    name=SPLIT,
    shard_lengths=counts,
    num_bytes=sum(
      path.stat().st_size for path in layout.directory.glob(f"{NAME}-*")
    ),
    filename_template=template,
  )
  tfds.folder_dataset.write_metadata(
    data_dir=str(layout.directory),
    features=_features(layout.spec),
    split_infos=[split],
    check_data=False,
  )


def _features(spec: InputSpec) -> Any:
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
