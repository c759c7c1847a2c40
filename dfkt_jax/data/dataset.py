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
  """The dataset at another size and number of channels, see `fit_images`."""
  if dataset.images.shape[1:] == (height, width, channels):
    return dataset
  images = fit_images(dataset.images, height, width, channels)
  return dataclasses.replace(dataset, images=images)


def fit_images(
  images: np.ndarray, height: int, width: int, channels: int
) -> np.ndarray:
  """u8[n, ...] as u8[n, height, width, channels].

  Resizing is bilinear with antialiasing; grey becomes RGB by repetition, RGB
  becomes grey by ITU-R 601 luma. What fits already is returned as it is.
  """
  shape = (height, width, channels)
  if images.shape[1:] == shape:
    return images
  fitted = np.empty((len(images), *shape), np.uint8)
  for index, image in enumerate(images):
    fitted[index] = _fit_one(image, height, width, channels)
  return fitted


def _fit_one(image, height, width, channels):
  from PIL import Image

  grey = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if grey else image)
  picture = picture.convert("L" if channels == 1 else "RGB")
  if picture.size != (width, height):
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(picture).reshape(height, width, channels)
