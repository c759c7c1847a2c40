"""Prepared TFDS datasets in ArrayRecord form, read without TensorFlow.

They are read as a whole or one example at a time: `as_data_source` does not
need TensorFlow for ArrayRecord files.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dfkt_jax.data.dataset import Dataset, NotAnImage
from dfkt_jax.data.shards import SOFT_LABELS
from dfkt_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Split:
  """One split, read one example at a time; several threads may read."""

  source: str  # the name or directory that was given
  split: str
  data: Any  # random access to examples
  image_key: str
  label_key: str | None
  class_names: tuple[str, ...]
  classes: int | None  # None if the features do not record it
  directory: str
  soft_classes: int = 0  # classes of the feature "soft_labels"; 0 without it

  def __len__(self) -> int:
    return len(self.data)

  def image(self, index: int) -> np.ndarray:
    """Return uint8[height, width, 1 or 3]."""
    return self[index]["image"]

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Return an example.

    It has "image", uint8[height, width, 1 or 3]; "label", i32[], if the split
    is labeled; and "soft_labels", f32[soft_classes], if they are stored.

    Raises:
      NotAnImage: it cannot be decoded, or the image has another shape.
      UsageError: it cannot be read.
    """
    try:
      example = self.data[index]
      image = np.asarray(example[self.image_key])
      found: dict[str, Any] = {"image": image}
      if self.label_key:
        found["label"] = np.int32(example[self.label_key])
      if self.soft_classes:
        found[SOFT_LABELS] = np.asarray(example[SOFT_LABELS], np.float32)
    except Exception as error:  # tfds, ArrayRecord and decoders: many kinds
      raise (UsageError if _is_read_error(error) else NotAnImage)(
        f"tfds:{self.source} cannot be read from {self.directory}"
        f" ({_first_line(error)}): expected whole ArrayRecord files; prepare it"
        " again"
      ) from error
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
      raise NotAnImage(
        f"tfds:{self.source}/{self.split} has an image {list(image.shape)}:"
        " expected [height, width, 1 or 3]; give another split or prepare it"
        " again"
      )
    return {**found, "image": image}

  @property
  def fingerprint(self) -> str:
    """A digest that changes with the files."""
    directory = Path(self.directory).resolve()
    stats = [
      (file.name, file.stat().st_size, file.stat().st_mtime_ns)
      for file in sorted(directory.iterdir())
    ]
    text = repr((str(directory), self.split, stats))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_read_error(error):
  """Return whether reading failed, rather than decoding.

  ArrayRecord raises RuntimeErrors; OSErrors of PIL do not have a number.
  """
  if isinstance(error, OSError):
    return bool(error.errno)
  return isinstance(error, RuntimeError)


def read(name: str, source: str, split: str | None) -> Dataset:
  """Read a dataset by its catalog name, or by its prepared directory.

  The default split is `test`, or else the only split. Image and label are the
  supervised keys, or the features with these names or of these kinds.

  Raises:
    UsageError: the dataset is not prepared, cannot be read, or does not have
      the split, a uint8 image or an integer label.
  """
  opened = open_split(source, split)
  examples = [opened[index] for index in range(len(opened))]
  images = [example["image"] for example in examples]
  if not images or len({image.shape for image in images}) > 1:
    raise UsageError(
      f"tfds:{source}/{opened.split} has {len(images)} images of"
      f" {len({image.shape for image in images})} sizes: expected one or more"
      " of one size; give another split or prepare it with resized images"
    )
  labels = np.array([example["label"] for example in examples], np.int32)
  return Dataset(name, np.stack(images), labels, opened.class_names)


def open_split(source: str, split: str | None, labeled: bool = True) -> Split:
  """Open a split that is read lazily.

  Raises:
    UsageError: see `read`.
  """
  builder = _load_builder(source)
  splits = list(builder.info.splits)
  if split is None:
    split = "test" if "test" in splits else splits[0]
    if "test" not in splits and len(splits) > 1:
      raise UsageError(
        f"tfds:{source} has the splits {', '.join(splits)} and no default:"
        f" expected one of them; give one, such as tfds:{source}/{split}"
      )
  if split not in splits:
    raise UsageError(
      f"tfds:{source} has no split {split!r}: expected one of"
      f" {', '.join(splits)}; give one of them"
    )
  features = builder.info.features
  image, label = _find_keys(source, builder.info, labeled)
  _check_types(source, features, image, label)
  try:
    data = builder.as_data_source(split)
  except ImportError as error:
    raise _not_installed(source, error) from error
  except (NotImplementedError, ValueError, FileNotFoundError) as error:
    raise UsageError(
      f"tfds:{source} cannot be opened ({_first_line(error)}): expected"
      " ArrayRecord files; prepare it with file_format='array_record'"
    ) from error
  classes, class_names = _classes(features[label]) if label else (None, ())
  return Split(
    source,
    str(split),
    data,
    image,
    label,
    class_names=class_names,
    classes=classes,
    directory=str(builder.data_dir),
    soft_classes=_soft_classes(features),
  )


def _soft_classes(features) -> int:
  """Return the length of "soft_labels", 0 if it is not a vector of floats."""
  if SOFT_LABELS not in features:
    return 0
  feature = features[SOFT_LABELS]
  floats = np.issubdtype(np.dtype(feature.np_dtype), np.floating)
  return feature.shape[0] or 0 if floats and len(feature.shape) == 1 else 0


def _load_builder(source: str) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise _not_installed(source, error) from error
  try:
    if Path(source).is_dir():
      return tfds.builder_from_directory(source)
    builder = tfds.builder(source, file_format="array_record")
  except Exception as error:  # tfds raises many kinds
    raise UsageError(
      f"tfds:{source} is unknown to tfds ({_first_line(error)}): expected a"
      " catalog name or the directory of a prepared dataset; check the name"
    ) from error
  if not Path(str(builder.data_dir)).is_dir():
    raise UsageError(
      f"tfds:{source} is not prepared at {builder.data_dir}: expected a"
      " directory with ArrayRecord files; prepare it there with"
      " file_format='array_record', or give its directory"
    )
  return builder


def _not_installed(source, error):
  return UsageError(
    f"tfds:{source} cannot be read without its packages ({error}): expected"
    " tensorflow-datasets and array_record; run pip install tensorflow-datasets"
    " grain importlib_resources"
  )


def _find_keys(source, info, labeled):
  """Return the keys of the image and of the label, None unless `labeled`."""
  import tensorflow_datasets as tfds

  features, supervised = info.features, info.supervised_keys or ()
  # They are nested if several features are one input.
  if len(supervised) == 2 and all(
    isinstance(key, str) and key in features for key in supervised
  ):
    return supervised if labeled else (supervised[0], None)

  def find(usual, kind):
    if usual in features:
      return usual
    found = [key for key, value in features.items() if isinstance(value, kind)]
    if len(found) != 1:
      raise UsageError(
        f"tfds:{source} has the features {', '.join(sorted(features))}:"
        f" expected {usual!r} among them; prepare it with that feature"
      )
    return found[0]

  image = find("image", tfds.features.Image)
  if not labeled:
    return image, None
  return image, find("label", tfds.features.ClassLabel)


def _check_types(source, features, image, label):
  kinds = {image: "u"} | ({label: "iu"} if label else {})
  for key, expected in kinds.items():
    dtype = np.dtype(features[key].np_dtype)
    if dtype.kind not in expected or (key == image and dtype != np.uint8):
      wanted = "uint8" if key == image else "whole numbers"
      raise UsageError(
        f"tfds:{source} has {key!r} of type {dtype}: expected {wanted}; prepare"
        " it with these"
      )


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _classes(feature):
  """Return the number and the names of a label's classes.

  The number is None if the feature does not record it; the names are empty if
  they are only numbers, which tfds uses for classes without names.
  """
  import tensorflow_datasets as tfds

  is_label = isinstance(feature, tfds.features.ClassLabel)
  if not is_label or feature.num_classes is None:
    return None, ()
  names = tuple(feature.names)
  numbers = tuple(map(str, range(len(names))))
  return feature.num_classes, () if names == numbers else names
