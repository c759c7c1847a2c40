"""Unlabelled images of any size and kind, one at a time.

Neither pixels nor names are held in memory where there may be very many: a
folder's names are in a file, a TFDS dataset and an npz file that is not
compressed are read in place. A compressed npz file is loaded as a whole, and a
zip file's table of contents while it is opened.
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
from dfkt_jax.data.load import load, split_of, split_slice
from dfkt_jax.data.zip_members import ZipMembers
from dfkt_jax.errors import UsageError


class _Names(Protocol):
  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> str: ...


@dataclasses.dataclass(frozen=True)
class ImageSource:
  """Images by number, from several threads.

  `fingerprint` changes with them and with the place that they are in.
  """

  names: _Names  # of everything there is, unique
  read: Callable[[int], Any]  # of everything there is
  fingerprint: str
  order: range  # what of it belongs to the source
  close: Callable[[], None] = lambda: None

  def __len__(self) -> int:
    return len(self.order)

  def name(self, index: int) -> str:
    """Where it comes from: a path in the folder or zip file, or a number."""
    return self.names[self.order[index]]

  def image(self, index: int) -> Any:
    """uint8[height, width, 1 or 3], or a PIL image.

    Raises:
      NoImage: what is there is none.
      UsageError: it cannot be read.
    """
    return self.read(self.order[index])


def open_source(text: str) -> ImageSource:
  """The images of a text such as zip:pool.zip or tfds:NAME/train[:1000].

  Labels and the names of folders do not matter; an npz file needs only an
  array `images`. To be closed.

  Raises:
    UsageError: what the text names is not there, or has no images.
  """
  body, bounds = split_slice(text)
  kind, colon, at = body.partition(":")
  if colon and not at:  # which would be the current directory
    raise UsageError(
      f"{text} says no place: expected a path or name behind the colon;"
      f" give one such as {kind}:photos"
    )
  if kind == "folder":
    source = _folder(Path(at))
  elif kind == "zip":
    source = _zip(Path(at))
  elif kind == "npz":
    source = _npz(*split_of(kind, at))
  elif kind == "tfds":
    source = _tfds(*split_of(kind, at))
  else:
    images = load(body).images
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    source = _arrays(images, digest.hexdigest())
  order = source.order[bounds]
  if not order:
    source.close()
    raise UsageError(
      f"{text} holds no image: expected some, in a folder or a zip file as .jpg"
      " or .png"
    )
  fingerprint = f"{source.fingerprint} {order}"
  return dataclasses.replace(source, order=order, fingerprint=fingerprint)


def _folder(folder: Path) -> ImageSource:
  if not folder.is_dir():
    raise UsageError(f"folder:{folder} is not a folder: give one of images")
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
  wanted = lambda name: image_files.is_image(PurePosixPath(name))
  members = ZipMembers(path, wanted, image_files.LARGEST)

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


def _npz(at: str, split: str | None) -> ImageSource:
  if split is not None:  # as rows of the file's own array `train` say
    images = npz.read(f"npz:{at}/{split}", Path(at), split).images
  else:
    images = npz.read_images(Path(at))
  # Two files of one name, size and time do differ in the sums of their arrays.
  path = Path(at).resolve()
  with zipfile.ZipFile(path) as archive:
    sums = [(info.filename, info.CRC) for info in archive.infolist()]
  stat = path.stat()
  key = f"{path} {split} {stat.st_size} {stat.st_mtime_ns} {sums}"
  return _arrays(images, hashlib.sha256(os.fsencode(key)).hexdigest())


def _arrays(images: np.ndarray, fingerprint: str) -> ImageSource:
  count = len(images)
  return ImageSource(
    _Numbers("", count), lambda i: images[i], fingerprint, range(count)
  )


def _tfds(at: str, split: str | None) -> ImageSource:
  source = tfds_source.open_split(at, split, labelled=False)
  return ImageSource(
    _Numbers(f"{source.split}/", len(source)),
    source.image,
    source.fingerprint,
    range(len(source)),
  )


class _Numbers:
  """Names of what has none: 00000012."""

  def __init__(self, prefix: str, count: int):
    self._prefix, self._count = prefix, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> str:
    return f"{self._prefix}{range(self._count)[index]:08d}"
