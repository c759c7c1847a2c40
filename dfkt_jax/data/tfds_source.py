"""Prepared TFDS datasets in ArrayRecord form, decoded to arrays.

No TensorFlow: `as_data_source` reads ArrayRecord files by itself.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError


def read(name: str, source: str, split: str | None) -> Dataset:
  """A dataset by catalogue name, or by the directory it was prepared in.

  Without a split: `test` where there is one, else the only one.

  Raises:
    UsageError: it is not prepared, has no such split, or no image and label.
  """
  builder = _builder(source)
  splits = list(builder.info.splits)
  if split is None:
    split = "test" if "test" in splits else splits[0]
    if "test" not in splits and len(splits) > 1:
      raise UsageError(
        f"tfds:{source} has the splits {', '.join(splits)}: name one, such as"
        f" tfds:{source}/{split}"
      )
  if split not in splits:
    raise UsageError(
      f"tfds:{source} has no split {split!r}: expected one of"
      f" {', '.join(splits)}"
    )
  image, label = _keys(source, builder.info.features)
  try:
    data = builder.as_data_source(split)
  except (NotImplementedError, ValueError, FileNotFoundError) as error:
    raise UsageError(
      f"tfds:{source} is not in ArrayRecord form"
      f" ({str(error).splitlines()[0]}): prepare it with"
      " file_format='array_record'"
    ) from error
  examples = [data[index] for index in range(len(data))]
  images = [np.asarray(example[image]) for example in examples]
  images = [x[..., None] if x.ndim == 2 else x for x in images]
  if len({x.shape for x in images}) > 1:
    raise UsageError(
      f"tfds:{source} has images of several sizes: expected one; prepare it"
      " with images resized"
    )
  labels = np.array([int(example[label]) for example in examples], np.int32)
  names = _names(builder.info.features[label])
  return Dataset(name, np.stack(images).astype(np.uint8), labels, names)


def _builder(source: str) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(
      f"tfds:{source} needs tensorflow-datasets ({error}): run pip install"
      " tensorflow-datasets grain importlib_resources"
    ) from error
  try:
    if Path(source).is_dir():
      return tfds.builder_from_directory(source)
    builder = tfds.builder(source, file_format="array_record")
  except Exception as error:  # tfds raises a dozen kinds
    raise UsageError(
      f"tfds:{source} is no dataset that tfds knows"
      f" ({str(error).splitlines()[0][:200]}): give a catalogue name or the"
      " directory of a prepared dataset"
    ) from error
  if not Path(str(builder.data_dir)).is_dir():
    raise UsageError(
      f"tfds:{source} is not prepared at {builder.data_dir}: prepare it there"
      " with file_format='array_record', or give its directory"
    )
  return builder


def _keys(source, features):
  """The names of the image and of the label among the features."""
  import tensorflow_datasets as tfds

  def find(usual, kind):
    if usual in features:
      return usual
    fitting = [
      key for key, value in features.items() if isinstance(value, kind)
    ]
    if len(fitting) != 1:
      raise UsageError(
        f"tfds:{source} has the features {', '.join(features)}: expected"
        f" {usual!r} among them"
      )
    return fitting[0]

  image = find("image", tfds.features.Image)
  return image, find("label", tfds.features.ClassLabel)


def _names(feature):
  """Class names, unless they are the numbers that stand for none."""
  names = tuple(getattr(feature, "names", None) or ())
  return () if names == tuple(map(str, range(len(names)))) else names
