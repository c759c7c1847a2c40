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
from dfkt_jax.data.dataset import Dataset, NoImage
from dfkt_jax.errors import UsageError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# An image file inflated past this is no image that belongs here.
LARGEST = 256 * 2**20

Size = tuple[int, int] | None


def read_folder(
  name: str, folder: Path, size: Size, crop: float = 1.0
) -> Dataset:
  """CLASS/NAME.jpg below a folder, or 0007_NAME.jpg as in `read_zip`.

  Raises:
    UsageError: it has no images, one cannot be read, their sizes differ with no
      `size` to bring them to, or their classes are not clear.
  """
  if not folder.is_dir():
    raise UsageError(f"folder:{folder} is not a folder: give one of images")
  paths = {
    path.relative_to(folder).as_posix(): path
    for path in sorted(folder.rglob("*"))
    if is_image(path.relative_to(folder)) and path.is_file()
  }
  return _dataset(
    name, folder, paths, lambda m: paths[m].read_bytes(), size, crop
  )


def read_zip(name: str, path: Path, size: Size, crop: float = 1.0) -> Dataset:
  """CLASS/NAME.jpg in a zip file, or 0007_NAME.jpg with the class in front.

  Nothing is unpacked to disk. Raises as `read_folder`, and a UsageError for
  what is no zip file or would unpack to an absurd size.
  """
  if not path.exists():
    raise UsageError(f"{path} does not exist: give zip:FILE with its path")
  try:
    with zipfile.ZipFile(path) as archive:
      infos = {
        info.filename: info
        for info in archive.infolist()
        if is_image(PurePosixPath(info.filename))
      }
      too_large = [n for n, info in infos.items() if info.file_size > LARGEST]
      if too_large:
        raise UsageError(
          f"{path}: {too_large[0]} would unpack to over {LARGEST >> 20} MiB:"
          " expected a photograph; remove it"
        )
      return _dataset(name, path, sorted(infos), archive.read, size, crop)
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
  crop: float,
) -> Dataset:
  members = sorted(members)
  if not members:
    raise UsageError(
      f"{place} holds no images: expected CLASS/NAME with one of the endings"
      f" {', '.join(ENDINGS)}"
    )
  classes, labels = _labels(place, members)
  images = [
    np.asarray(fit(decode(place, member, read), size, crop))
    for member in members
  ]
  shapes = sorted({image.shape[:2] for image in images})
  if len(shapes) > 1:
    raise UsageError(
      f"{place} has images of {len(shapes)} sizes, such as {shapes[0]} and"
      f" {shapes[-1]}: expected one where no network says which; resize them"
    )
  return Dataset(name, np.stack(images), labels, classes)


def is_image(path: PurePath) -> bool:
  """By its ending; hidden files, such as macOS adds to zips, are none."""
  hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
  return path.suffix.lower() in ENDINGS and not hidden


def _labels(place, members):
  """Class names and i32[n] from folders, or from numbers in front of names."""
  parents = [PurePosixPath(member).parent.name for member in members]
  if all(parents):
    _check_folders(place, members)
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


def _check_folders(place, members):
  """Refuses N/images/x.jpg, where the last folder does not tell the class."""
  first = {}
  for folder in sorted({PurePosixPath(member).parent for member in members}):
    other = first.setdefault(folder.name, folder)
    if other != folder:
      raise UsageError(
        f"{place} has both {other} and {folder}: expected CLASS/NAME with each"
        " class in one folder; name one of them, or move the images"
      )


def decode(place: Path, member: str, read: Callable[[str], bytes]) -> Any:
  """The RGB image, of PIL, that `read` answers the bytes of, upright.

  Raises:
    NoImage: its bytes are no such image.
    UsageError: the member of `place` cannot be read.
  """
  from PIL import Image, ImageOps

  try:
    picture = Image.open(_bytes(place, member, read))
    # Pillow clips these to 8 bits, which leaves them white.
    if picture.mode.startswith(("I", "F")):
      raise ValueError(f"mode {picture.mode}, expected 8 bits a channel")
    # Pillow raises for broken pixels the first time only: not to be suppressed.
    picture.load()
    with contextlib.suppress(Exception):  # what broken EXIF data raise
      ImageOps.exif_transpose(picture, in_place=True)
    return picture.convert("RGB")
  except UsageError:
    raise
  except Exception as error:  # Pillow raises a dozen kinds for broken bytes
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "its bytes are of no image format that Pillow knows"
    raise NoImage(
      f"{place}: {member} cannot be read ({reason}): expected an image; mend or"
      " remove it"
    ) from error


def _bytes(place, member, read):
  # This error has to do with the disk, and a next time may be without one.
  try:
    return io.BytesIO(read(member))
  except OSError as error:
    raise files.unreadable(f"{place}: {member}", error) from error


def fit(picture: Any, size: Size, crop: float = 1.0) -> Any:
  """A PIL image at (height, width): the shorter side to fit, then the centre.

  Bilinear with antialiasing. `crop` is the share of the shorter side that is
  kept, such as 224 / 256 for ImageNet. An image of that size already is left as
  it is, and so is every one where `size` is None.
  """
  if size is not None and picture.size != size[::-1]:
    return _resize_and_crop(picture, *size, crop)
  return picture


def _resize_and_crop(picture, height, width, crop):
  from PIL import Image

  scale = max(height / picture.height, width / picture.width) / crop
  new = (
    max(width, round(picture.width * scale)),
    max(height, round(picture.height * scale)),
  )
  picture = picture.resize(new, Image.Resampling.BILINEAR)
  left, top = (new[0] - width) // 2, (new[1] - height) // 2
  return picture.crop((left, top, left + width, top + height))
