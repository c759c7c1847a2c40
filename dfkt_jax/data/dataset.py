"""Labeled images in memory."""

import dataclasses

import numpy as np

from dfkt_jax.errors import UsageError


class NotAnImage(UsageError):
  """The bytes were read and are not an image; reading again does not help."""


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images and labels."""

  name: str  # the text from which it was loaded
  images: np.ndarray  # uint8[n, height, width, channels]
  labels: np.ndarray  # int32[n]
  class_names: tuple[str, ...] = ()  # may be empty


def resize(dataset: Dataset, height: int, width: int, channels: int) -> Dataset:
  """Convert a dataset to a size and number of channels; see `resize_images`."""
  if dataset.images.shape[1:] == (height, width, channels):
    return dataset
  images = resize_images(dataset.images, height, width, channels)
  return dataclasses.replace(dataset, images=images)


def resize_images(
  images: np.ndarray, height: int, width: int, channels: int
) -> np.ndarray:
  """Convert u8[n, ...] to u8[n, height, width, channels].

  Resizing is bilinear with antialiasing. Gray becomes RGB by repetition, RGB
  becomes gray by ITU-R 601 luma. Images of this shape are returned unchanged.
  """
  shape = (height, width, channels)
  if images.shape[1:] == shape:
    return images
  resized = np.empty((len(images), *shape), np.uint8)
  for index, image in enumerate(images):
    resized[index] = _resize_image(image, height, width, channels)
  return resized


def _resize_image(image, height, width, channels):
  from PIL import Image

  gray = image.shape[-1] == 1
  picture = Image.fromarray(image[..., 0] if gray else image)
  picture = picture.convert("L" if channels == 1 else "RGB")
  if picture.size != (width, height):
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(picture).reshape(height, width, channels)
