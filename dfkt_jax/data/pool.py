"""Unlabelled images, decoded once, resized and cropped, into a cache on disk.

Grain reads them in several workers. The cache is in parts, each written beside
and renamed, so that a killed decoding goes on at the next part; neither pixels
nor names are ever in memory as a whole once it is written.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

import jax
import numpy as np

from dfkt_jax import files
from dfkt_jax.data import image_files
from dfkt_jax.data.parts import Names, Parts, save
from dfkt_jax.data.sources import ImageSource, open_source
from dfkt_jax.data.stream import require
from dfkt_jax.errors import UsageError

PART_BYTES = 64 * 2**20
"""Of pixels in one file of the cache."""
CARD = "pool.json"  # written last: a cache that has one is whole
FEW = 20  # names of broken images that are told


@dataclasses.dataclass(frozen=True)
class ImagePool:
  """`names` say where an image comes from, uniquely."""

  text: str  # what the pool was opened by
  images: Parts  # uint8[n, height, width, channels]
  names: Names
  left_out: int  # images that could not be read
  cache: Path  # the pool's own folder

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
  read is left out, counted, and named to `say`.

  Args:
    text: folder:DIR, zip:FILE, npz:FILE, tfds:NAME or any other dataset.
    shape: (height, width, channels).
    workers: threads that decode (default: one a core).

  Raises:
    UsageError: there is no such source, or no image of it can be read.
  """
  with contextlib.closing(open_source(text)) as source:
    key = f"{source.fingerprint} {tuple(shape)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / digest[:16]
    card = folder / CARD
    if not card.exists():
      _decode_all(text, source, shape, folder, digest, workers, say)
  found = files.read_json(card)
  counts = found["images_of_part"]
  images = [_path(folder, part) for part in range(len(counts))]
  names = [path.with_suffix(".txt") for path in images]
  return ImagePool(
    text, Parts(images), Names(names, counts), found["left_out"], folder
  )


def _path(folder, part):
  return folder / f"{part:05d}.npy"


def _decode_all(text, source, shape, folder, digest, workers, say):
  count = len(source)
  rows = max(1, PART_BYTES // int(np.prod(shape)))
  parts = -(-count // rows)
  # Processes that share the cache begin at different parts, so they share the
  # work too; what two of them write is the same.
  first = parts * jax.process_index() // jax.process_count()
  for part in (*range(first, parts), *range(first)):
    path = _path(folder, part)
    if not path.exists():
      indices = range(part * rows, min((part + 1) * rows, count))
      _decode_part(source, shape, indices, path, workers)
      if parts > 1:
        say(f"{text}: decoded part {part + 1} of {parts}, {count:,} images")
  paths = [_path(folder, part) for part in range(parts)]
  counts = [len(np.load(path, mmap_mode="r")) for path in paths]
  broken = [files.read_json(path.with_suffix(".json")) for path in paths]
  left_out = sum(part["left_out"] for part in broken)
  first_broken = [reason for part in broken for reason in part["first"]]
  if left_out:
    say(
      f"{text}: {left_out:,} of {count:,} images cannot be read and are left"
      f" out, first {first_broken[0]}"
    )
  if not sum(counts):
    raise UsageError(
      f"{text}: none of its {count:,} images can be read ({first_broken[0]})"
    )
  files.write_json(
    folder / CARD,
    {
      "text": text,
      "fingerprint": digest,
      "shape": shape,
      "images": sum(counts),
      "left_out": left_out,
      "first_left_out": first_broken[:FEW],
      "images_of_part": counts,
    },
  )


def _decode_part(
  source: ImageSource,
  shape: tuple[int, int, int],
  indices: range,
  path: Path,
  workers: int | None,
) -> None:
  grain = require()

  def decode(index):
    """(index, uint8 image, None), or (index, None, why not)."""
    try:
      return index, _fitted(source.image(index), shape), None
    except UsageError as error:
      return index, None, str(error)

  workers = workers or os.cpu_count() or 1
  options = grain.ReadOptions(
    num_threads=workers, prefetch_buffer_size=16 * workers
  )
  dataset = grain.MapDataset.source(indices).map(decode)
  images = np.empty((len(indices), *shape), np.uint8)
  names, broken = [], []
  with contextlib.closing(iter(dataset.to_iter_dataset(options))) as decoded:
    for index, image, problem in decoded:
      if image is None:
        broken.append(problem)
      else:
        images[len(names)] = image
        names.append(source.name(index).replace("\n", "\\n"))
  # The pixels come last: they say that the part is whole.
  files.write_json(
    path.with_suffix(".json"), {"left_out": len(broken), "first": broken[:FEW]}
  )
  # A file's name need not be text.
  text = "\n".join(names).encode(errors="backslashreplace")
  files.write_atomic(path.with_suffix(".txt"), text)
  save(path, images[: len(names)])


def _fitted(image, shape):
  from PIL import Image

  height, width, channels = shape
  if isinstance(image, np.ndarray):
    grey = image.shape[-1] == 1
    image = Image.fromarray(image[..., 0] if grey else image)
  picture = image_files.fit(image, (height, width))
  picture = picture.convert("L" if channels == 1 else "RGB")
  return np.asarray(picture).reshape(shape)
