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

  Without a split: `test` where there is one, else the only one. Image and label
  are the supervised keys, or the features of these names or of these kinds.

  Raises:
    UsageError: it is not prepared, cannot be read, has no such split, or no
      uint8 image and whole-number label.
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
  image, label = _keys(source, builder.info)
  _check(source, builder.info.features, image, label)
  try:
    data = builder.as_data_source(split)
  except ImportError as error:
    raise _not_installed(source, error) from error
  except (NotImplementedError, ValueError, FileNotFoundError) as error:
    raise UsageError(
      f"tfds:{source} is not in ArrayRecord form"
      f" ({_first_line(error)}): prepare it with"
      " file_format='array_record'"
    ) from error
  pairs = _pairs(source, builder, data, image, label)
  images = [x[..., None] if x.ndim == 2 else x for x, _ in pairs]
  if len({x.shape for x in images}) > 1:
    raise UsageError(
      f"tfds:{source} has images of several sizes: expected one; prepare it"
      " with images resized"
    )
  if not images or images[0].ndim != 3 or images[0].shape[-1] not in (1, 3):
    raise UsageError(
      f"tfds:{source}/{split} has {len(images)} images"
      f" {list(images[0].shape) if images else ''}: expected some of [height,"
      " width, 1 or 3]; name another split or prepare it anew"
    )
  labels = np.array([y for _, y in pairs], np.int32)
  return Dataset(
    name, np.stack(images), labels, _names(builder.info.features[label])
  )


def _builder(source: str) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise _not_installed(source, error) from error
  try:
    if Path(source).is_dir():
      return tfds.builder_from_directory(source)
    builder = tfds.builder(source, file_format="array_record")
  except Exception as error:  # tfds raises a dozen kinds
    raise UsageError(
      f"tfds:{source} is no dataset that tfds knows"
      f" ({_first_line(error)}): give a catalogue name or the"
      " directory of a prepared dataset"
    ) from error
  if not Path(str(builder.data_dir)).is_dir():
    raise UsageError(
      f"tfds:{source} is not prepared at {builder.data_dir}: prepare it there"
      " with file_format='array_record', or give its directory"
    )
  return builder


def _not_installed(source, error):
  return UsageError(
    f"tfds:{source} needs tensorflow-datasets and array_record ({error}): run"
    " pip install tensorflow-datasets grain importlib_resources"
  )


def _keys(source, info):
  """The names of the image and of the label among the features."""
  import tensorflow_datasets as tfds

  features, supervised = info.features, info.supervised_keys or ()
  # They may nest, where several features are one input.
  if len(supervised) == 2 and all(
    isinstance(key, str) and key in features for key in supervised
  ):
    return supervised

  def find(usual, kind):
    if usual in features:
      return usual
    fitting = [
      key for key, value in features.items() if isinstance(value, kind)
    ]
    if len(fitting) != 1:
      raise UsageError(
        f"tfds:{source} has the features {', '.join(sorted(features))}:"
        f" expected {usual!r} among them"
      )
    return fitting[0]

  image = find("image", tfds.features.Image)
  return image, find("label", tfds.features.ClassLabel)


def _check(source, features, image, label):
  image_type = np.dtype(features[image].np_dtype)
  label_type = np.dtype(features[label].np_dtype)
  if image_type != np.uint8 or label_type.kind not in "iu":
    raise UsageError(
      f"tfds:{source} has {image!r} of {image_type} and {label!r} of"
      f" {label_type}: expected uint8 and whole numbers; prepare it with those"
    )


def _pairs(source, builder, data, image, label):
  """(uint8 image, int label) of every example."""
  try:
    examples = (data[index] for index in range(len(data)))
    return [(np.asarray(x[image]), int(x[label])) for x in examples]
  except Exception as error:  # tfds, ArrayRecord and decoders: a dozen kinds
    raise UsageError(
      f"tfds:{source} cannot be read from {builder.data_dir}"
      f" ({_first_line(error)}): prepare it again"
    ) from error


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _names(feature):
  """Class names, unless they are the numbers that stand for none."""
  names = tuple(getattr(feature, "names", None) or ())
  return () if names == tuple(map(str, range(len(names)))) else names
