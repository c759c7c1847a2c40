"""MNIST's file format: images-idx3 and labels-idx1, gzipped or not."""

import gzip
import os
from pathlib import Path
import re
import zlib

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = (
  *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt"),
  *("Sneaker", "Bag", "Ankle boot"),
)
_FILES = {"train": "train", "test": "t10k", "t10k": "t10k"}


def read(
  name: str, folder: Path, split: str, class_names: tuple[str, ...] = ()
) -> Dataset:
  """Read the `train` or the `test` (`t10k`) files of a folder.

  File names are the usual ones, such as t10k-images-idx3-ubyte.gz, with or
  without a prefix.

  Raises:
    UsageError: there is not exactly one pair of files, or a file is broken.
  """
  images = _read_array(_find(folder, split, "images", 3), 3)
  labels_path = _find(folder, split, "labels", 1)
  labels = _read_array(labels_path, 1)
  if len(images) != len(labels):
    raise UsageError(
      f"{labels_path} has {len(labels)} labels for {len(images)} images:"
      " expected equal numbers; download or copy both files again"
    )
  return Dataset(name, images[..., None], labels.astype(np.int32), class_names)


def read_fashion_mnist(name: str, split: str) -> Dataset:
  """Read Fashion-MNIST from Debian's package dataset-fashion-mnist."""
  folder = Path(os.environ.get("DFKT_FASHION_MNIST", FASHION_MNIST))
  if not folder.is_dir():
    raise UsageError(
      f"fashion_mnist is not at {folder}: expected a folder with its idx files;"
      " run apt-get install dataset-fashion-mnist, or set DFKT_FASHION_MNIST to"
      " the folder"
    )
  return read(name, folder, split, FASHION_NAMES)


def _find(folder, split, kind, rank):
  if not folder.is_dir():
    raise UsageError(
      f"idx:{folder} is not a folder: expected one with idx files; check the"
      " path"
    )
  pattern = re.compile(
    rf"(.*[-_.])?{_FILES[split]}-{kind}[-.]idx{rank}-ubyte(\.gz)?"
  )
  names = sorted(path.name for path in folder.iterdir())
  found = [name for name in names if pattern.fullmatch(name)]
  if len(found) != 1:
    listed = ", ".join(found or names[:8]) or "nothing"
    raise UsageError(
      f"idx:{folder} has {len(found)} files of {split} {kind} ({listed}):"
      f" expected one, {_FILES[split]}-{kind}-idx{rank}-ubyte, or with .gz; add"
      " it or remove the others"
    )
  return folder / found[0]


def _read_array(path, rank):
  """Read uint8 of `rank` dimensions; the header must match the file's size."""
  try:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UsageError(
      f"{path} is damaged ({error}): expected a whole gzip file; download or"
      " copy it again"
    ) from error
  except OSError as error:
    raise files.unreadable(path, error) from error
  header = 4 + 4 * rank
  if len(raw) < header or raw[:4] != bytes([0, 0, 8, rank]):
    raise UsageError(
      f"{path} begins with {raw[:4].hex()}: expected 000008{rank:02x} for"
      f" unsigned bytes of {rank} dimensions; download or copy it again"
    )
  shape = np.frombuffer(raw, ">u4", rank, 4).tolist()
  count = int(np.prod(shape, dtype=object))
  if len(raw) != header + count:
    raise UsageError(
      f"{path} has {len(raw) - header} bytes for {shape}: expected {count};"
      " download or copy it again"
    )
  return np.frombuffer(raw, np.uint8, count, header).reshape(shape)
