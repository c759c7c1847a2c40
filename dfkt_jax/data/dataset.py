"""Labelled images in memory."""

import dataclasses

import numpy as np

from dfkt_jax.errors import UsageError


class NoImage(UsageError):
  """Its bytes were read and are no image: they will not be one later on."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """`name` is the text it was loaded by; `class_names` may be empty."""

  name: str
  images: np.ndarray  # uint8[n, height, width, channels]
  labels: np.ndarray  # int32[n]
  class_names: tuple[str, ...] = ()


def fit(dataset: Dataset, height: int, width: int, channels: int) -> Dataset:
  """The dataset at another size and number of channels.

  Resizing is bilinear with antialiasing; grey becomes RGB by repetition, RGB
  becomes grey by ITU-R 601 luma. What fits already is returned as it is.
  """
  shape = (height, width, channels)
  if dataset.images.shape[1:] == shape:
    return dataset
  images = np.empty((len(dataset.images), *shape), np.uint8)
  for index, image in enumerate(dataset.images):
    images[index] = _fit_one(image, height, width, channels)
  return dataclasses.replace(dataset, images=images)


def _fit_one(image, height, width, channels):
  from PIL import Image

  grey = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if grey else image)
  picture = picture.convert("L" if channels == 1 else "RGB")
  if picture.size != (width, height):
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(picture).reshape(height, width, channels)
