"""Unlabeled images, decoded, resized and cropped once into a cache on disk.

Grain reads them with several workers. The cache consists of chunks, which are
written to temporary files and renamed. So a decoding that was killed continues
with the next chunk, and a chunk that is damaged or missing is decoded again.
Once written, neither pixels nor names are ever in memory as a whole.
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
from dfkt_jax.data.chunked import ChunkedArray, ChunkedNames, save_npy
from dfkt_jax.data.dataset import NotAnImage
from dfkt_jax.data.sources import ImageSource, open_source
from dfkt_jax.data.stream import require
from dfkt_jax.errors import DfktError, UsageError

CHUNK_BYTES = 64 * 2**20
"""Bytes of pixels in one file of the cache; it changes the fingerprint."""
DECODER_VERSION = 2
"""Increases if the same bytes are decoded to other pixels."""
CARD = "pool.json"  # written last, for people
MAX_REPORTED = 20  # broken images that the card names


@dataclasses.dataclass(frozen=True)
class ImagePool:
  """Decoded images of one shape."""

  text: str  # the text from which the pool was opened
  images: ChunkedArray  # uint8[n, height, width, channels]
  names: ChunkedNames  # the origin of every image, unique
  left_out: int  # number of images that could not be decoded
  cache: Path  # the pool's own folder
  fingerprint: str  # hexadecimal, of the pixels, their shape and the names

  def __len__(self) -> int:
    return len(self.images)


def open_pool(
  text: str,
  shape: tuple[int, int, int],
  cache: Path,
  workers: int | None = None,
  log: Callable[[str], None] = print,
) -> ImagePool:
  """Decode images to one shape into a cache, unless they are there already.

  Images may have any size: the shorter side is resized (bilinear with
  antialiasing) and the center is cropped. Gray becomes RGB by repetition, RGB
  becomes gray by luma. Images that cannot be decoded are left out, counted and
  reported to `log`.

  Args:
    text: folder:DIR, zip:FILE, npz:FILE, tfds:NAME or any other dataset.
    shape: (height, width, channels).
    cache: folder with a subfolder for every pool.
    workers: number of decoding threads (default: one per core).
    log: receives messages for the user.

  Raises:
    UsageError: there is no such source, one of its files cannot be read, or no
      image can be decoded.
  """
  with contextlib.closing(open_source(text)) as source:
    key = f"{DECODER_VERSION} {source.fingerprint} {tuple(shape)}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    records = _decode_missing(text, source, shape, folder, workers, log)
  images = [_path(folder, chunk) for chunk in range(len(records))]
  names = [path.with_suffix(".txt") for path in images]
  sums = [record["sha256"] for record in records]
  digest = hashlib.sha256(repr((tuple(shape), sums)).encode())
  pool = ImagePool(
    text,
    ChunkedArray(images),
    ChunkedNames(names, [record["images"] for record in records]),
    sum(record["left_out"] for record in records),
    folder,
    digest.hexdigest(),
  )
  broken = [reason for record in records for reason in record["first"]]
  if not len(pool):
    raise UsageError(
      f"{text}: all of its {pool.left_out:,} images are broken, the first is"
      f" {broken[0]}"
    )
  if not (folder / CARD).exists():
    _write_card(pool, shape, broken, log)
  return pool


def _write_card(pool, shape, broken, log):
  if broken:
    log(
      f"{pool.text}: {pool.left_out:,} of {len(pool) + pool.left_out:,} images"
      f" cannot be read and are left out, the first is {broken[0]}"
    )
  card = {
    "text": pool.text,
    "fingerprint": pool.fingerprint,
    "shape": shape,
    "images": len(pool),
    "left_out": pool.left_out,
    "first_left_out": broken[:MAX_REPORTED],
  }
  files.write_json(pool.cache / CARD, card)


def _path(folder, chunk):
  return folder / f"{chunk:05d}.npy"


def _decode_missing(text, source, shape, folder, workers, log):
  """Decode the missing chunks of the cache and return all chunks' records."""
  count = len(source)
  rows = max(1, CHUNK_BYTES // int(np.prod(shape)))
  chunks = -(-count // rows)
  # Processes that share the cache begin at different chunks, so they share the
  # work too; if two of them write a chunk, they write the same.
  first = chunks * jax.process_index() // jax.process_count()
  records = {}
  for chunk in (*range(first, chunks), *range(first)):
    path = _path(folder, chunk)
    indices = range(chunk * rows, min((chunk + 1) * rows, count))
    records[chunk] = _read_record(path, len(indices))
    if records[chunk] is None:
      records[chunk] = _decode_chunk(source, shape, indices, path, workers)
      if chunks > 1:
        log(f"{text}: decoded chunk {chunk + 1} of {chunks}, {count:,} images")
  return [records[chunk] for chunk in range(chunks)]


def _read_record(path, count):
  """Return the record of a chunk of `count` images, or None if incomplete."""
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
  except (ValueError, EOFError, KeyError, TypeError):  # a file was cut short
    return None


def _decode_chunk(
  source: ImageSource,
  shape: tuple[int, int, int],
  indices: range,
  path: Path,
  workers: int | None,
) -> dict:
  """Decode and write a chunk, and return its record."""
  grain = require()

  def decode(index):
    """Return the index, and a uint8 image or the error."""
    try:
      return index, _resize_and_crop(source.image(index), shape)
    except DfktError as error:
      # If a worker raised it, Grain would append lines of its own.
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
      if isinstance(image, NotAnImage):
        broken.append(str(image))
      elif isinstance(image, DfktError):  # an error of the disk may go away
        raise image
      else:
        images[len(names)] = image
        names.append(source.name(index).replace("\n", "\\n"))
  images = images[: len(names)]
  # The name of a file may not be valid text.
  text = "\n".join(names).encode(errors="backslashreplace")
  digest = hashlib.sha256(images.data)
  digest.update(text)
  record = {
    "images": len(names),
    "left_out": len(broken),
    "first": broken[:MAX_REPORTED],
    "bytes_of_names": len(text),
    "sha256": digest.hexdigest(),
  }
  # The pixels are written last: without them the chunk is incomplete.
  files.write_json(path.with_suffix(".json"), record)
  files.write_atomic(path.with_suffix(".txt"), text)
  save_npy(path, images)
  return record


def _resize_and_crop(image, shape):
  from PIL import Image

  height, width, channels = shape
  if isinstance(image, np.ndarray):
    gray = image.shape[-1] == 1
    image = Image.fromarray(image[..., 0] if gray else image)
  picture = image_files.resize_and_crop(image, (height, width))
  picture = picture.convert("L" if channels == 1 else "RGB")
  return np.asarray(picture).reshape(shape)
