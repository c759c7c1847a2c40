"""Labeled images that are read one at a time and need not fit into memory."""

import dataclasses
from typing import Any

import numpy as np

from dfkt_jax.data import tfds_source
from dfkt_jax.data.load import parse_slice, parse_split
from dfkt_jax.data.stream import Stream
from dfkt_jax.errors import UsageError

SAMPLE = 10_000
"""Number of images from which the moments of the pixels are estimated."""
_BATCH = 100


@dataclasses.dataclass(frozen=True)
class Examples:
  """A source for a stream; all images have one shape."""

  name: str  # the text from which it was opened
  source: Any  # random access to "image", "label" and perhaps "soft_labels"
  order: range  # indices in the source
  shape: tuple[int, int, int]
  classes: int
  class_names: tuple[str, ...] = ()
  soft_classes: int = 0  # classes of stored soft labels; 0 without soft labels

  def __len__(self) -> int:
    return len(self.order)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
    """Return u8[height, width, channels] and its class.

    Raises:
      UsageError: the image has another shape, or the label is out of range.
    """
    example = self.example(index)
    return example["image"], example["label"]

  def example(self, index: int) -> dict[str, Any]:
    """Return "image", "label" and, if stored, "soft_labels" f32[soft_classes].

    Raises:
      UsageError: the image has another shape, or the label is out of range.
    """
    example = self.source[self.order[index]]
    image, label = example["image"], example["label"]
    if image.shape != self.shape:
      raise UsageError(
        f"dataset {self.name} has images of shape {list(image.shape)} and"
        f" {list(self.shape)}: expected one shape; prepare it with resized"
        " images"
      )
    if not 0 <= label < self.classes:
      raise UsageError(
        f"dataset {self.name} has the label {label}: expected 0 to"
        f" {self.classes - 1}; give a split that has labels"
      )
    return example


def open_examples(text: str) -> Examples | None:
  """Open the examples of tfds:NAME.

  Returns:
    None for data that are better read as a whole: all other kinds of datasets,
    and those of tfds that do not record a number of classes.

  Raises:
    UsageError: see `load`.
  """
  body, bounds = parse_slice(text)
  kind, _, location = body.partition(":")
  if kind != "tfds" or not location:
    return None
  source = tfds_source.open_split(*parse_split(kind, location))
  if source.classes is None:
    return None
  order = range(len(source))[bounds]
  if not order:
    raise UsageError(
      f"dataset {text!r} has no image: expected a slice that keeps some of its"
      f" {len(source)} images; give another slice"
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
  """Return mean and standard deviation of each channel, f64[channels].

  Pixels are in [0, 1]. All images are used, or about SAMPLE of them, evenly
  spaced, if there are more.
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
