"""Labelled images read one at a time: they need not fit into memory."""

import dataclasses
from typing import Any

import numpy as np

from dfkt_jax.data import tfds_source
from dfkt_jax.data.load import split_of, split_slice
from dfkt_jax.data.stream import Stream
from dfkt_jax.errors import UsageError

SAMPLE = 10_000
"""Images that tell the mean and spread of the pixels."""
_BATCH = 100


@dataclasses.dataclass(frozen=True)
class Examples:
  """A source for a stream; images are of one shape."""

  name: str  # the text it was opened by
  source: Any  # answers "image", "label" and perhaps "soft_labels"
  order: range  # the examples of the source that belong to it
  shape: tuple[int, int, int]
  classes: int
  class_names: tuple[str, ...] = ()
  soft_classes: int = 0  # of stored soft labels; 0: there are none

  def __len__(self) -> int:
    return len(self.order)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
    """u8[height, width, channels] and its class.

    Raises:
      UsageError: it is of another shape, or has no such class.
    """
    example = self.example(index)
    return example["image"], example["label"]

  def example(self, index: int) -> dict[str, Any]:
    """With "soft_labels", f32[soft_classes], where there are some, too."""
    example = self.source[self.order[index]]
    image, label = example["image"], example["label"]
    if image.shape != self.shape:
      raise UsageError(
        f"dataset {self.name} has images {list(image.shape)} and"
        f" {list(self.shape)}: expected one size; prepare it with images"
        " resized"
      )
    if not 0 <= label < self.classes:
      raise UsageError(
        f"dataset {self.name} has a label {label}: expected 0 to"
        f" {self.classes - 1}; name a split that has labels"
      )
    return example


def open_examples(text: str) -> Examples | None:
  """The examples of tfds:NAME; None for data that are better read whole.

  Those are all other kinds, and what does not say how many classes it has.

  Raises:
    UsageError: as `load`.
  """
  body, bounds = split_slice(text)
  kind, _, at = body.partition(":")
  if kind != "tfds" or not at:
    return None
  source = tfds_source.open_split(*split_of(kind, at))
  if source.classes is None:
    return None
  order = range(len(source))[bounds]
  if not order:
    raise UsageError(
      f"dataset {text!r} has no image: it has {len(source)} before the slice;"
      " give one that has"
    )
  shape = source.image(order[0]).shape
  return Examples(
    text,
    source,
    order,
    shape,
    source.classes,
    source.class_names,
    source.soft_classes,
  )


def moments(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel in [0, 1], f64[channels].

  Of all images, or of about SAMPLE spread evenly over them if they are more.
  """
  order = examples.order[:: -(-len(examples) // SAMPLE)]
  sample = dataclasses.replace(examples, order=order)
  options = {"process": 0, "processes": 1, "shuffle": False, "epochs": 1}
  sums = np.zeros((2, examples.shape[-1]))
  count = 0
  with Stream(sample, _BATCH, **options) as batches:
    for images, _ in batches:
      pixels = images.reshape(-1, images.shape[-1]) / 255
      sums += pixels.sum(0), np.square(pixels).sum(0)
      count += len(pixels)
  mean, square = sums / count
  return mean, np.sqrt(np.maximum(square - mean**2, 0.0))
