"""Image files: CLASS/NAME.jpg in a folder or a zip file."""

from collections.abc import Callable, Iterable
import contextlib
import io
from pathlib import Path, PurePath, PurePosixPath
import re
from typing import Any
import zipfile
import zlib

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.dataset import Dataset, NotAnImage
from dfkt_jax.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Bytes of the largest image file that is unpacked.
MAX_BYTES = 256 * 2**20

Size = tuple[int, int] | None


def read_folder(
  name: str, folder: Path, size: Size, crop: float = 1.0
) -> Dataset:
  """Read CLASS/NAME.jpg in a folder, or 0007_NAME.jpg as in `read_zip`.

  Raises:
    UsageError: the folder has no images, an image cannot be read, sizes differ
      although `size` is None, or the classes are not clear.
  """
  if not folder.is_dir():
    raise UsageError(
      f"folder:{folder} is not a folder: expected one with images; check the"
      " path"
    )
  paths = {
    path.relative_to(folder).as_posix(): path
    for path in sorted(folder.rglob("*"))
    if is_image(path.relative_to(folder)) and path.is_file()
  }
  return _dataset(
    name, folder, paths, lambda m: paths[m].read_bytes(), size, crop
  )


def read_zip(name: str, path: Path, size: Size, crop: float = 1.0) -> Dataset:
  """Read CLASS/NAME.jpg in a zip file, or 0007_NAME.jpg of class 7.

  Nothing is unpacked to disk.

  Raises:
    UsageError: see `read_folder`; also if the file is not a zip file, or an
      image would be unpacked to more than MAX_BYTES.
  """
  if not path.exists():
    raise UsageError(
      f"{path} does not exist: expected zip:FILE with the path of a zip file;"
      " check the path"
    )
  try:
    with zipfile.ZipFile(path) as archive:
      infos = {
        info.filename: info
        for info in archive.infolist()
        if is_image(PurePosixPath(info.filename))
      }
      too_large = [n for n, info in infos.items() if info.file_size > MAX_BYTES]
      if too_large:
        raise UsageError(
          f"{path}: {too_large[0]} would be unpacked to over"
          f" {MAX_BYTES >> 20} MiB: expected a photograph; remove it"
        )
      return _dataset(name, path, sorted(infos), archive.read, size, crop)
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
    raise UsageError(
      f"{path} cannot be unpacked ({error}): expected a whole, unencrypted zip"
      " file; download or copy it again"
    ) from error


def _dataset(
  name: str,
  container: Path,
  members: Iterable[str],
  read: Callable[[str], bytes],
  size: Size,
  crop: float,
) -> Dataset:
  members = sorted(members)
  if not members:
    raise UsageError(
      f"{container} holds no images: expected CLASS/NAME with one of the"
      f" suffixes {', '.join(SUFFIXES)}; check the path"
    )
  classes, labels = _labels(container, members)
  images = [
    np.asarray(resize_and_crop(decode(container, member, read), size, crop))
    for member in members
  ]
  shapes = sorted({image.shape[:2] for image in images})
  if len(shapes) > 1:
    raise UsageError(
      f"{container} has images of {len(shapes)} sizes, such as {shapes[0]} and"
      f" {shapes[-1]}: expected one size where no network determines it; resize"
      " them"
    )
  return Dataset(name, np.stack(images), labels, classes)


def is_image(path: PurePath) -> bool:
  """Return whether a path has the suffix of an image and is not hidden.

  The hidden files include those that macOS adds to zip files.
  """
  hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
  return path.suffix.lower() in SUFFIXES and not hidden


def _labels(container, members):
  """Return class names and i32[n], from folders or from numbers in names."""
  parents = [PurePosixPath(member).parent.name for member in members]
  if all(parents):
    _check_folders(container, members)
    classes = tuple(sorted(set(parents)))
    index = {name: label for label, name in enumerate(classes)}
    return classes, np.array([index[name] for name in parents], np.int32)
  found = [
    re.match(r"(\d{1,9})_", PurePosixPath(member).name) for member in members
  ]
  numbers = [int(match[1]) for match in found if match]
  if any(parents) or len(numbers) < len(members):
    raise UsageError(
      f"{container}: some images have no class: expected CLASS/NAME for all, or"
      " names such as 0007_NAME that begin with the class; rename or move them"
    )
  return (), np.array(numbers, np.int32)


def _check_folders(container, members):
  """Refuse N/images/x.jpg, whose last folder is not the class."""
  first = {}
  for folder in sorted({PurePosixPath(member).parent for member in members}):
    other = first.setdefault(folder.name, folder)
    if other != folder:
      raise UsageError(
        f"{container} has both {other} and {folder}: expected CLASS/NAME with"
        " each class in one folder; give one of the two, or move the images"
      )


def decode(container: Path, member: str, read: Callable[[str], bytes]) -> Any:
  """Decode a member of `container` as a PIL image, in RGB and upright.

  Args:
    read: returns the bytes of a member.

  Raises:
    NotAnImage: its bytes are not an image of 8 bits per channel.
    UsageError: the member of `container` cannot be read.
  """
  from PIL import Image, ImageOps

  try:
    picture = Image.open(_open_bytes(container, member, read))
    # Pillow clips such modes to 8 bits, which makes the image white.
    if picture.mode.startswith(("I", "F")):
      raise ValueError(f"mode {picture.mode}, expected 8 bits per channel")
    # Pillow raises for broken pixels only once, so load them before the block
    # that suppresses errors.
    picture.load()
    with contextlib.suppress(Exception):  # broken EXIF data raise many kinds
      ImageOps.exif_transpose(picture, in_place=True)
    return picture.convert("RGB")
  except UsageError:
    raise
  except Exception as error:  # Pillow raises many kinds for broken bytes
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "Pillow does not recognize the image format"
    raise NotAnImage(
      f"{container}: {member} cannot be read ({reason}): expected an image;"
      " repair or remove it"
    ) from error


def _open_bytes(container, member, read):
  # An error of the disk may go away, so it does not become a NotAnImage.
  try:
    return io.BytesIO(read(member))
  except OSError as error:
    raise files.unreadable(f"{container}: {member}", error) from error


def resize_and_crop(picture: Any, size: Size, crop: float = 1.0) -> Any:
  """Resize the shorter side of a PIL image and crop the center.

  Resizing is bilinear with antialiasing. An image that has the size already is
  returned unchanged, and so is every image if `size` is None.

  Args:
    size: (height, width).
    crop: share of the shorter side that is kept, such as 224 / 256 for
      ImageNet.
  """
  from PIL import Image

  if size is None or picture.size == size[::-1]:
    return picture
  height, width = size
  scale = max(height / picture.height, width / picture.width) / crop
  new = (
    max(width, round(picture.width * scale)),
    max(height, round(picture.height * scale)),
  )
  picture = picture.resize(new, Image.Resampling.BILINEAR)
  left, top = (new[0] - width) // 2, (new[1] - height) // 2
  return picture.crop((left, top, left + width, top + height))
