"""Transfer sets: a labelled dataset as images for a student to learn from."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from dfkt_jax.contracts import Batch
from dfkt_jax.data.examples import open_examples
from dfkt_jax.data.load import load
from dfkt_jax.data.shards import SOFT_LABELS
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec


@dataclasses.dataclass(frozen=True)
class TransferSet:
  """A source of examples for a stream of batches."""

  name: str  # the text that opened it
  count: int
  example: Callable[[int], dict[str, Any]]  # "image", "label", "soft_labels"
  has_labels: bool  # of the teacher's classes
  has_soft_labels: bool

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Batch:
    """Return one u8 image; its label is -1 unless `has_labels`."""
    example = self.example(index)
    label = example["label"] if self.has_labels else -1
    soft_labels = example[SOFT_LABELS] if self.has_soft_labels else None
    return Batch(example["image"], np.int32(label), soft_labels)  # type: ignore


def open_transfer_set(text: str, spec: InputSpec) -> TransferSet:
  """Open a dataset such as tfds:runs/di/dataset for a teacher of `spec`.

  Examples of tfds: datasets are read from disk when they are needed, other
  datasets as a whole. Labels that are not of the teacher's classes, and soft
  labels of another number of classes, are ignored.

  Raises:
    UsageError: as `load`, or its images do not have the teacher's shape.
  """
  streamed = open_examples(text)
  if streamed is not None:
    shape, names, classes = (
      streamed.shape,
      streamed.class_names,
      streamed.classes,
    )
    count, example = len(streamed), streamed.example
    soft_classes = streamed.soft_classes
  else:
    dataset = load(text)
    shape, names = dataset.images.shape[1:], dataset.class_names
    # A set without names may lack the last classes.
    highest = int(dataset.labels.max()) + 1
    classes = len(names) or max(highest, spec.classes)
    count, soft_classes = len(dataset.labels), 0

    def example(index):
      return {"image": dataset.images[index], "label": dataset.labels[index]}

  if shape != spec.shape:
    raise UsageError(
      f"--transfer-set {text} has images {list(shape)} and the teacher takes"
      f" {list(spec.shape)} (height, width, channels): give images of that"
      " shape"
    )
  alike = not names or not spec.class_names or names == spec.class_names
  return TransferSet(
    text,
    count,
    example,
    has_labels=alike and classes == spec.classes,
    has_soft_labels=soft_classes == spec.classes,
  )
