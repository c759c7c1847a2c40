"""Prepared TFDS datasets in ArrayRecord form, whole or an example at a time.

No TensorFlow: `as_data_source` reads ArrayRecord files by itself.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dfkt_jax.data.dataset import Dataset, NoImage
from dfkt_jax.data.shards import SOFT_LABELS
from dfkt_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Split:
  """One split, read an example at a time and from several threads."""

  source: str  # as given: a name or a directory
  split: str
  data: Any  # random access to examples
  image_key: str
  label_key: str | None
  class_names: tuple[str, ...]
  classes: int | None  # as far as the features tell
  directory: str
  soft_classes: int = 0  # of the feature "soft_labels", where there is one

  def __len__(self) -> int:
    return len(self.data)

  def image(self, index: int) -> np.ndarray:
    """uint8[height, width, 1 or 3]."""
    return self[index]["image"]

  def __getitem__(self, index: int) -> dict[str, Any]:
    """ "image", uint8[height, width, 1 or 3], and "label", i32[], if labelled.

    And "soft_labels", f32[soft_classes], where there are some.

    Raises:
      NoImage: it is none of that kind.
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
    except Exception as error:  # tfds, ArrayRecord and decoders: a dozen kinds
      # ArrayRecord raises RuntimeErrors, and PIL OSErrors without a number.
      reading = isinstance(error, RuntimeError) or getattr(error, "errno", None)
      raise (UsageError if reading else NoImage)(
        f"tfds:{self.source} cannot be read from {self.directory}"
        f" ({_first_line(error)}): prepare it again"
      ) from error
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
      raise NoImage(
        f"tfds:{self.source}/{self.split} has an image {list(image.shape)}:"
        " expected [height, width, 1 or 3]; name another split or prepare it"
        " anew"
      )
    return {**found, "image": image}

  @property
  def fingerprint(self) -> str:
    """Changes when the files do."""
    directory = Path(self.directory).resolve()
    stats = [
      (file.name, file.stat().st_size, file.stat().st_mtime_ns)
      for file in sorted(directory.iterdir())
    ]
    text = repr((str(directory), self.split, stats))
    return hashlib.sha256(text.encode()).hexdigest()


def read(name: str, source: str, split: str | None) -> Dataset:
  """A dataset by catalogue name, or by the directory it was prepared in.

  Without a split: `test` where there is one, else the only one. Image and label
  are the supervised keys, or the features of these names or of these kinds.

  Raises:
    UsageError: it is not prepared, cannot be read, has no such split, or no
      uint8 image and whole-number label.
  """
  opened = open_split(source, split)
  examples = [opened[index] for index in range(len(opened))]
  images = [example["image"] for example in examples]
  if not images or len({image.shape for image in images}) > 1:
    raise UsageError(
      f"tfds:{source}/{opened.split} has {len(images)} images of"
      f" {len({image.shape for image in images})} sizes: expected some of one"
      " size; name another split or prepare it with images resized"
    )
  labels = np.array([example["label"] for example in examples], np.int32)
  return Dataset(name, np.stack(images), labels, opened.class_names)


def open_split(source: str, split: str | None, labelled: bool = True) -> Split:
  """A split to be read lazily; raises as `read`."""
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
  features = builder.info.features
  image, label = _keys(source, builder.info, labelled)
  _check(source, features, image, label)
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
  labels = features[label] if label else None
  return Split(
    source,
    str(split),
    data,
    image,
    label,
    class_names=_names(labels),
    classes=getattr(labels, "num_classes", None),
    directory=str(builder.data_dir),
    soft_classes=_soft_classes(features),
  )


def _soft_classes(features) -> int:
  """How many numbers "soft_labels" has, if it is one row of real ones."""
  if SOFT_LABELS not in features:
    return 0
  feature = features[SOFT_LABELS]
  real = np.issubdtype(np.dtype(feature.np_dtype), np.floating)
  return feature.shape[0] or 0 if real and len(feature.shape) == 1 else 0


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


def _keys(source, info, labelled):
  """The names of the image and, if labelled, of the label."""
  import tensorflow_datasets as tfds

  features, supervised = info.features, info.supervised_keys or ()
  # They may nest, where several features are one input.
  if len(supervised) == 2 and all(
    isinstance(key, str) and key in features for key in supervised
  ):
    return supervised if labelled else (supervised[0], None)

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
  if not labelled:
    return image, None
  return image, find("label", tfds.features.ClassLabel)


def _check(source, features, image, label):
  kinds = {image: "u"} | ({label: "iu"} if label else {})
  for key, expected in kinds.items():
    dtype = np.dtype(features[key].np_dtype)
    if dtype.kind not in expected or (key == image and dtype != np.uint8):
      wanted = "uint8" if key == image else "whole numbers"
      raise UsageError(
        f"tfds:{source} has {key!r} of {dtype}: expected {wanted}; prepare it"
        " with those"
      )


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _names(feature):
  """Class names, unless they are the numbers that stand for none."""
  names = tuple(getattr(feature, "names", None) or ())
  return () if names == tuple(map(str, range(len(names)))) else names
