"""Image files: CLASS/NAME.jpg in a folder or a zip file."""

from collections.abc import Callable, Iterable
import io
from pathlib import Path, PurePosixPath
import re
import zipfile
import zlib

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# An image file inflated past this is no image that belongs here.
LARGEST = 256 * 2**20

Size = tuple[int, int] | None


def read_folder(name: str, folder: Path, size: Size) -> Dataset:
  """CLASS/NAME.jpg below a folder."""
  if not folder.is_dir():
    raise UsageError(f"folder:{folder} is not a folder: give one of images")
  paths = {
    path.relative_to(folder).as_posix(): path
    for path in sorted(folder.rglob("*"))
    if path.suffix.lower() in ENDINGS and path.is_file()
  }
  return _dataset(name, folder, paths, lambda m: paths[m].read_bytes(), size)


def read_zip(name: str, path: Path, size: Size) -> Dataset:
  """CLASS/NAME.jpg in a zip file, or 0007_NAME.jpg with the class in front.

  Nothing is unpacked to disk.
  """
  if not path.exists():
    raise UsageError(f"{path} does not exist: give zip:FILE with its path")
  try:
    with zipfile.ZipFile(path) as archive:
      infos = {
        info.filename: info
        for info in archive.infolist()
        if PurePosixPath(info.filename).suffix.lower() in ENDINGS
      }
      too_large = [n for n, info in infos.items() if info.file_size > LARGEST]
      if too_large:
        raise UsageError(
          f"{path}: {too_large[0]} would unpack to over {LARGEST >> 20} MiB:"
          " expected a photograph; remove it"
        )
      return _dataset(name, path, sorted(infos), archive.read, size)
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
    raise UsageError(
      f"{path} is not a whole, unencrypted zip file ({error}): get it again"
    ) from error


def _dataset(
  name: str,
  place: Path,
  members: Iterable[str],
  read: Callable[[str], bytes],
  size: Size,
) -> Dataset:
  members = sorted(members)
  if not members:
    raise UsageError(
      f"{place} holds no images: expected CLASS/NAME with one of the endings"
      f" {', '.join(ENDINGS)}"
    )
  classes, labels = _labels(place, members)
  images = [_decode(place, member, read(member), size) for member in members]
  shapes = sorted({image.shape[:2] for image in images})
  if len(shapes) > 1:
    raise UsageError(
      f"{place} has images of {len(shapes)} sizes, such as {shapes[0]} and"
      f" {shapes[-1]}: expected one where no network says which; resize them"
    )
  return Dataset(name, np.stack(images), labels, classes)


def _labels(place, members):
  """Class names and i32[n] from folders, or from numbers in front of names."""
  parents = [PurePosixPath(member).parent.name for member in members]
  if all(parents):
    classes = tuple(sorted(set(parents)))
    index = {name: label for label, name in enumerate(classes)}
    return classes, np.array([index[name] for name in parents], np.int32)
  found = [
    re.match(r"(\d{1,9})_", PurePosixPath(member).name) for member in members
  ]
  numbers = [int(match[1]) for match in found if match]
  if any(parents) or len(numbers) < len(members):
    raise UsageError(
      f"{place}: the class of some images is not told: expected CLASS/NAME for"
      " all, or names such as 0007_NAME with the class in front"
    )
  return (), np.array(numbers, np.int32)


def _decode(place, member, raw, size):
  """uint8[height, width, 3]."""
  from PIL import Image

  try:
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise UsageError(
      f"{place}: {member} is not an image that can be read ({e}): mend or"
      " remove it"
    ) from e
  if size is not None and picture.size != size[::-1]:
    picture = _resize_and_crop(picture, *size)
  return np.asarray(picture)


def _resize_and_crop(picture, height, width):
  """The shorter side to fit, then the centre."""
  from PIL import Image

  scale = max(height / picture.height, width / picture.width)
  new = (
    max(width, round(picture.width * scale)),
    max(height, round(picture.height * scale)),
  )
  picture = picture.resize(new, Image.Resampling.BILINEAR)
  left, top = (new[0] - width) // 2, (new[1] - height) // 2
  return picture.crop((left, top, left + width, top + height))
