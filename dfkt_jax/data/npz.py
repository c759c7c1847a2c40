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
  " labels [n] of whole numbers from 0, and optionally train bool [n] and"
  " class_names; write the file again"
)
# Errors of NumPy for bytes that are not arrays, or are pickles.
_NUMPY_ERRORS = (ValueError, EOFError, KeyError, TypeError, RuntimeError)


def read(name: str, path: Path, split: str | None) -> Dataset:
  """Read the whole file, or one split if it has an array `train`.

  The default split is `test`.

  Raises:
    UsageError: the file cannot be read or holds other arrays.
  """
  arrays = _load(path)
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
        f"{path} has no split {split!r}: expected an array 'train', bool [n];"
        f" leave /{split} out or add the array"
      )
    return Dataset(name, images, labels, names)
  if train.dtype != bool or train.shape != labels.shape:
    raise UsageError(
      f"{path}: train is {train.dtype} {list(train.shape)}: {EXPECTED}"
    )
  rows = train if split == "train" else ~train
  return Dataset(name, images[rows], labels[rows], names)


def read_images(path: Path) -> np.ndarray:
  """Return the array `images`, uint8[n, height, width, channels].

  It stays on disk (a memmap) unless the file is compressed.

  Raises:
    UsageError: there is no such array, or it has another type or shape.
  """
  images = _memory_map(path)
  if images is None:
    arrays = _load(path)
    if "images" not in arrays:
      raise UsageError(
        f"{path} holds {', '.join(arrays) or 'nothing'}: {EXPECTED}"
      )
    images = arrays["images"]
  images = images[..., None] if images.ndim == 3 else images
  _check(path, images, np.zeros(len(images), np.int32))
  return images


def _memory_map(path):
  """Return a memmap of the array `images`, or None if that is not possible."""
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
      # A name and an extra field are between the zip header and the array.
      raw.seek(info.header_offset + 26)
      name, extra = struct.unpack("<HH", raw.read(4))
    offset = info.header_offset + 30 + name + extra + header
    order = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)
  except (OSError, struct.error, zipfile.BadZipFile, *_NUMPY_ERRORS):
    return None  # `_load` raises the error


def _load(path):
  try:
    # Given a path, NumPy does not close a file that is not a zip file.
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      return dict(file)
  except FileNotFoundError as error:
    raise UsageError(
      f"{path} does not exist: expected npz:FILE with the path of a .npz file;"
      " check the path"
    ) from error
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (*_NUMPY_ERRORS, zipfile.BadZipFile, zlib.error) as e:
    raise UsageError(
      f"{path} is not a whole .npz file ({e}): {EXPECTED}"
    ) from e


def _check(path, images, labels):
  valid = (
    images.dtype == np.uint8
    and images.ndim == 4
    and images.shape[-1] in (1, 3)
    and 0 not in images.shape[1:]
    and labels.ndim == 1
    and np.issubdtype(labels.dtype, np.integer)
    and len(images) == len(labels)
  )
  if not valid:
    raise UsageError(
      f"{path} has images {images.dtype} {list(images.shape)} and labels"
      f" {labels.dtype} {list(labels.shape)}: {EXPECTED}"
    )
  for label in (labels.min(), labels.max()) if len(labels) else ():
    if not 0 <= label <= np.iinfo(np.int32).max:
      raise UsageError(f"{path} has the label {label}: {EXPECTED}")


def _names(path, names, labels):
  if names is None:
    return ()
  if names.ndim != 1 or names.dtype.kind not in "US":
    raise UsageError(
      f"{path}: class_names is {names.dtype} {list(names.shape)}: expected"
      " strings [classes]; write the file again"
    )
  if len(labels) and labels.max() >= len(names):
    raise UsageError(
      f"{path} has the label {labels.max()} and {len(names)} class_names:"
      " expected one for each class; add the rest or leave class_names out"
    )
  texts = np.char.decode(names) if names.dtype.kind == "S" else names
  return tuple(texts.tolist())
