"""Unlabelled images, decoded once, resized and cropped, into a cache on disk.

Grain reads them in several workers. The cache is in parts, each written beside
and renamed, so that a killed decoding goes on at the next part, and a part that
is damaged or gone is decoded again; neither pixels nor names are ever in memory
as a whole once it is written.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np

from dfkt_jax import files
from dfkt_jax.data import image_files
from dfkt_jax.data.dataset import NoImage
from dfkt_jax.data.parts import Names, Parts, save
from dfkt_jax.data.sources import ImageSource, open_source
from dfkt_jax.data.stream import require
from dfkt_jax.errors import DfktError, UsageError

PART_BYTES = 64 * 2**20
"""Of pixels in one file of the cache; another number gives a pool another
fingerprint."""
DECODING = 2
"""Goes up when the same bytes come out as other pixels."""
CARD = "pool.json"  # written last, for people
FEW = 20  # names of broken images that are told


@dataclasses.dataclass(frozen=True)
class ImagePool:
  """`names` say where an image comes from, uniquely."""

  text: str  # what the pool was opened by
  images: Parts  # uint8[n, height, width, channels]
  names: Names
  left_out: int  # images that could not be decoded
  cache: Path  # the pool's own folder
  fingerprint: str  # hexadecimal, of the pixels, their shape and the names

  def __len__(self) -> int:
    return len(self.images)


def open_pool(
  text: str,
  shape: tuple[int, int, int],
  cache: Path,
  workers: int | None = None,
  say: Callable[[str], None] = print,
) -> ImagePool:
  """The images of `text` at `shape`, decoded into `cache` if they are not yet.

  Images of any size: bilinear with antialiasing, the shorter side to fit, then
  the centre. Grey becomes RGB by repetition, RGB grey by luma. What cannot be
  decoded is left out, counted, and named to `say`.

  Args:
    text: folder:DIR, zip:FILE, npz:FILE, tfds:NAME or any other dataset.
    shape: (height, width, channels).
    workers: threads that decode (default: one a core).

  Raises:
    UsageError: there is no such source, one of its files cannot be read, or no
      image of it can be decoded.
  """
  with contextlib.closing(open_source(text)) as source:
    key = f"{DECODING} {source.fingerprint} {tuple(shape)}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    parts = _decode_missing(text, source, shape, folder, workers, say)
  images = [_path(folder, part) for part in range(len(parts))]
  names = [path.with_suffix(".txt") for path in images]
  sums = [part["sha256"] for part in parts]
  digest = hashlib.sha256(repr((tuple(shape), sums)).encode())
  pool = ImagePool(
    text,
    Parts(images),
    Names(names, [part["images"] for part in parts]),
    sum(part["left_out"] for part in parts),
    folder,
    digest.hexdigest(),
  )
  broken = [reason for part in parts for reason in part["first"]]
  if not len(pool):
    raise UsageError(
      f"{text}: none of its {pool.left_out:,} images can be read ({broken[0]})"
    )
  if not (folder / CARD).exists():
    _write_card(pool, shape, broken, say)
  return pool


def _write_card(pool, shape, broken, say):
  if broken:
    say(
      f"{pool.text}: {pool.left_out:,} of {len(pool) + pool.left_out:,} images"
      f" cannot be read and are left out, first {broken[0]}"
    )
  card = {
    "text": pool.text,
    "fingerprint": pool.fingerprint,
    "shape": shape,
    "images": len(pool),
    "left_out": pool.left_out,
    "first_left_out": broken[:FEW],
  }
  files.write_json(pool.cache / CARD, card)


def _path(folder, part):
  return folder / f"{part:05d}.npy"


def _decode_missing(text, source, shape, folder, workers, say):
  """Decodes what is not whole in the cache; what each part's record says."""
  count = len(source)
  rows = max(1, PART_BYTES // int(np.prod(shape)))
  parts = -(-count // rows)
  # Processes that share the cache begin at different parts, so they share the
  # work too; what two of them write is the same.
  first = parts * jax.process_index() // jax.process_count()
  records = {}
  for part in (*range(first, parts), *range(first)):
    path = _path(folder, part)
    indices = range(part * rows, min((part + 1) * rows, count))
    records[part] = _record(path, len(indices))
    if records[part] is None:
      records[part] = _decode_part(source, shape, indices, path, workers)
      if parts > 1:
        say(f"{text}: decoded part {part + 1} of {parts}, {count:,} images")
  return [records[part] for part in range(parts)]


def _record(path, count):
  """What was written of a part of `count` images; None if it is not whole."""
  try:
    record = json.loads(path.with_suffix(".json").read_bytes())
    images = len(np.load(path, mmap_mode="r"))
    size = path.with_suffix(".txt").stat().st_size
    whole = (
      record["images"] == images
      and record["images"] + record["left_out"] == count
      and record["bytes_of_names"] == size
    )
    return record if whole else None
  except FileNotFoundError:
    return None
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (ValueError, EOFError, KeyError, TypeError):  # of what is cut short
    return None


def _decode_part(
  source: ImageSource,
  shape: tuple[int, int, int],
  indices: range,
  path: Path,
  workers: int | None,
) -> dict:
  """Writes a part; its record."""
  grain = require()

  def decode(index):
    """Its number, and a uint8 image or why there is none."""
    try:
      return index, _fitted(source.image(index), shape)
    except DfktError as error:
      # Raised in a worker it would come with Grain's own lines behind it.
      return index, error

  workers = workers or os.cpu_count() or 1
  options = grain.ReadOptions(
    num_threads=workers, prefetch_buffer_size=16 * workers
  )
  dataset = grain.MapDataset.source(indices).map(decode)
  images = np.empty((len(indices), *shape), np.uint8)
  names, broken = [], []
  with contextlib.closing(iter(dataset.to_iter_dataset(options))) as decoded:
    for index, image in decoded:
      if isinstance(image, NoImage):
        broken.append(str(image))
      elif isinstance(image, DfktError):  # of a disk: it may go away
        raise image
      else:
        images[len(names)] = image
        names.append(source.name(index).replace("\n", "\\n"))
  images = images[: len(names)]
  # A file's name need not be text.
  text = "\n".join(names).encode(errors="backslashreplace")
  digest = hashlib.sha256(images.data)
  digest.update(text)
  record = {
    "images": len(names),
    "left_out": len(broken),
    "first": broken[:FEW],
    "bytes_of_names": len(text),
    "sha256": digest.hexdigest(),
  }
  # The pixels come last: they say that the part is whole.
  files.write_json(path.with_suffix(".json"), record)
  files.write_atomic(path.with_suffix(".txt"), text)
  save(path, images)
  return record


def _fitted(image, shape):
  from PIL import Image

  height, width, channels = shape
  if isinstance(image, np.ndarray):
    grey = image.shape[-1] == 1
    image = Image.fromarray(image[..., 0] if grey else image)
  picture = image_files.fit(image, (height, width))
  picture = picture.convert("L" if channels == 1 else "RGB")
  return np.asarray(picture).reshape(shape)
