"""Arrays in a .npz file."""

from pathlib import Path
import struct
import zipfile
import zlib

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

EXPECTED = (
  "expected images uint8 [n, height, width, channels] or [n, height, width],"
  " labels [n] of whole numbers from 0, and perhaps train bool [n] and"
  " class_names"
)
# What NumPy raises for bytes that are no arrays, or want to be pickles.
_BROKEN = (ValueError, EOFError, KeyError, TypeError, RuntimeError)


def read(name: str, path: Path, split: str | None) -> Dataset:
  """The whole file, or `train` or `test` where it has an array `train`.

  Without a split, a file that has one answers `test`.

  Raises:
    UsageError: it cannot be read or holds something else.
  """
  arrays = _arrays(path)
  images, labels = arrays.get("images"), arrays.get("labels")
  if images is None or labels is None:
    raise UsageError(
      f"{path} holds {', '.join(arrays) or 'nothing'}: {EXPECTED}"
    )
  images = images[..., None] if images.ndim == 3 else images
  _check(path, images, labels)
  names = _names(path, arrays.get("class_names"), labels)
  labels = labels.astype(np.int32)
  train = arrays.get("train")
  if train is None:
    if split is not None:
      raise UsageError(
        f"{path} has no array 'train', so no split {split!r}: leave /{split}"
        " out, or add train, bool [n]"
      )
    return Dataset(name, images, labels, names)
  if train.dtype != bool or train.shape != labels.shape:
    raise UsageError(
      f"{path}: train is {train.dtype} {list(train.shape)}; {EXPECTED}"
    )
  chosen = train if split == "train" else ~train
  return Dataset(name, images[chosen], labels[chosen], names)


def read_images(path: Path) -> np.ndarray:
  """The array `images` alone, uint8[n, height, width, channels].

  It stays on disk (a memmap) unless the file is compressed.

  Raises:
    UsageError: there is none, or it is of another kind.
  """
  images = _in_place(path)
  if images is None:
    arrays = _arrays(path)
    if "images" not in arrays:
      raise UsageError(
        f"{path} holds {', '.join(arrays) or 'nothing'}: {EXPECTED}"
      )
    images = arrays["images"]
  images = images[..., None] if images.ndim == 3 else images
  _check(path, images, np.zeros(len(images), np.int32))
  return images


def _in_place(path):
  """The array `images` where it is a plain stretch of the file, or None."""
  try:
    with zipfile.ZipFile(path) as archive:
      info = archive.getinfo("images.npy")
      if info.compress_type != zipfile.ZIP_STORED:
        return None
      with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
          (1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
        header = file.tell()
    with open(path, "rb") as raw:
      # The name and an extra field stand between zip's header and the array.
      raw.seek(info.header_offset + 26)
      name, extra = struct.unpack("<HH", raw.read(4))
    offset = info.header_offset + 30 + name + extra + header
    order = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)
  except (OSError, struct.error, zipfile.BadZipFile, *_BROKEN):
    return None  # whoever loads it says what is wrong


def _arrays(path):
  try:
    # NumPy leaves a file that is no zip open when it opened it itself.
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      return dict(file)
  except FileNotFoundError as error:
    raise UsageError(
      f"{path} does not exist: give npz:FILE with the path of a .npz file"
    ) from error
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (*_BROKEN, zipfile.BadZipFile, zlib.error) as e:
    raise UsageError(
      f"{path} is not a whole .npz file ({e}): {EXPECTED}"
    ) from e


def _check(path, images, labels):
  fine = (
    images.dtype == np.uint8
    and images.ndim == 4
    and images.shape[-1] in (1, 3)
    and 0 not in images.shape[1:]
    and labels.ndim == 1
    and np.issubdtype(labels.dtype, np.integer)
    and len(images) == len(labels)
  )
  if not fine:
    raise UsageError(
      f"{path} has images {images.dtype} {list(images.shape)} and labels"
      f" {labels.dtype} {list(labels.shape)}: {EXPECTED}"
    )
  for label in (labels.min(), labels.max()) if len(labels) else ():
    if not 0 <= label <= np.iinfo(np.int32).max:
      raise UsageError(f"{path} has a label {label}: {EXPECTED}")


def _names(path, names, labels):
  if names is None:
    return ()
  if names.ndim != 1 or names.dtype.kind not in "US":
    raise UsageError(
      f"{path}: class_names is {names.dtype} {list(names.shape)}, expected"
      " strings [classes]: write it again"
    )
  if len(labels) and labels.max() >= len(names):
    raise UsageError(
      f"{path} has a label {labels.max()} and {len(names)} class_names:"
      " expected one for each class; add the rest or leave class_names out"
    )
  texts = np.char.decode(names) if names.dtype.kind == "S" else names
  return tuple(texts.tolist())
