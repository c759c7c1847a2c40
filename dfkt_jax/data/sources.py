"""Unlabeled images of any size and kind, read one at a time.

Sources may have very many images, so their pixels and names are not kept in
memory: the names of a folder are in a file, and a TFDS dataset and an
uncompressed npz file are read in place. Only a compressed npz file is loaded as
a whole, and a zip file's table of contents while it is opened.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
import zipfile

import numpy as np

from dfkt_jax import files
from dfkt_jax.data import image_files, npz, tfds_source
from dfkt_jax.data.listing import Listing
from dfkt_jax.data.load import load, parse_slice, parse_split
from dfkt_jax.data.zip_members import ZipMembers
from dfkt_jax.errors import UsageError


class _Names(Protocol):
  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> str: ...


@dataclasses.dataclass(frozen=True)
class ImageSource:
  """Images by index, which several threads may read."""

  names: _Names  # unique names of all images, also of those not in `order`
  read: Callable[[int], Any]  # reads any of these images
  fingerprint: str  # changes with the images and with their location
  order: range  # indices of the images that belong to the source
  close: Callable[[], None] = lambda: None

  def __len__(self) -> int:
    return len(self.order)

  def name(self, index: int) -> str:
    """Return an image's path in the folder or zip file, or its number."""
    return self.names[self.order[index]]

  def image(self, index: int) -> Any:
    """Return uint8[height, width, 1 or 3] or a PIL image.

    Raises:
      NotAnImage: the bytes are not an image.
      UsageError: the image cannot be read.
    """
    return self.read(self.order[index])


def open_source(text: str) -> ImageSource:
  """Open the images of a text such as zip:pool.zip or tfds:NAME/train[:1000].

  Labels and the names of folders are ignored, and an npz file needs only an
  array `images`. The caller closes the source.

  Raises:
    UsageError: the source does not exist or has no images.
  """
  body, bounds = parse_slice(text)
  kind, colon, location = body.partition(":")
  if colon and not location:  # Path("") is the current directory
    raise UsageError(
      f"{text} has nothing after the colon: expected a path or name; give one"
      f" such as {kind}:photos"
    )
  if kind == "folder":
    source = _folder(Path(location))
  elif kind == "zip":
    source = _zip(Path(location))
  elif kind == "npz":
    source = _npz(*parse_split(kind, location))
  elif kind == "tfds":
    source = _tfds(*parse_split(kind, location))
  else:
    images = load(body).images
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    source = _arrays(images, digest.hexdigest())
  order = source.order[bounds]
  if not order:
    source.close()
    raise UsageError(
      f"{text} holds no images: expected some, such as .jpg or .png files in a"
      " folder or zip file; check the path and the slice"
    )
  fingerprint = f"{source.fingerprint} {order}"
  return dataclasses.replace(source, order=order, fingerprint=fingerprint)


def _folder(folder: Path) -> ImageSource:
  if not folder.is_dir():
    raise UsageError(
      f"folder:{folder} is not a folder: expected one with images; check the"
      " path"
    )
  digest = hashlib.sha256(os.fsencode(folder.resolve()) + b"\n")

  def members() -> Iterator[str]:
    for directory, subfolders, found in os.walk(folder):
      subfolders.sort()
      for name in sorted(found):
        path = Path(directory, name)
        relative = path.relative_to(folder)
        if image_files.is_image(relative) and path.is_file():
          stat = path.stat()
          entry = f"{relative.as_posix()} {stat.st_size} {stat.st_mtime_ns}\n"
          digest.update(os.fsencode(entry))
          yield relative.as_posix()

  try:
    names = Listing(members())
  except OSError as error:
    raise files.unreadable(folder, error) from error

  def read(index):
    raw = lambda name: (folder / name).read_bytes()
    return image_files.decode(folder, names[index], raw)

  return ImageSource(
    names, read, digest.hexdigest(), range(len(names)), names.close
  )


def _zip(path: Path) -> ImageSource:
  is_image = lambda name: image_files.is_image(PurePosixPath(name))
  members = ZipMembers(path, is_image, image_files.MAX_BYTES)

  def read(index):
    raw = lambda _: members.read(index)
    return image_files.decode(path, members.names[index], raw)

  return ImageSource(
    members.names,
    read,
    members.fingerprint(),
    range(len(members)),
    members.close,
  )


def _npz(location: str, split: str | None) -> ImageSource:
  if split is not None:  # the file's array `train` defines the split
    images = npz.read(f"npz:{location}/{split}", Path(location), split).images
  else:
    images = npz.read_images(Path(location))
  # Files of the same name, size and time still differ in their checksums.
  path = Path(location).resolve()
  with zipfile.ZipFile(path) as archive:
    sums = [(info.filename, info.CRC) for info in archive.infolist()]
  stat = path.stat()
  key = f"{path} {split} {stat.st_size} {stat.st_mtime_ns} {sums}"
  return _arrays(images, hashlib.sha256(os.fsencode(key)).hexdigest())


def _arrays(images: np.ndarray, fingerprint: str) -> ImageSource:
  count = len(images)
  return ImageSource(
    _NumberNames("", count), lambda i: images[i], fingerprint, range(count)
  )


def _tfds(location: str, split: str | None) -> ImageSource:
  source = tfds_source.open_split(location, split, labeled=False)
  return ImageSource(
    _NumberNames(f"{source.split}/", len(source)),
    source.image,
    source.fingerprint,
    range(len(source)),
  )


class _NumberNames:
  """Names such as 00000012 for images that have no names."""

  def __init__(self, prefix: str, count: int):
    self._prefix, self._count = prefix, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> str:
    return f"{self._prefix}{range(self._count)[index]:08d}"
