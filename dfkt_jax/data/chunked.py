"""Arrays and names in several files, read only where they are indexed."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
from typing import Any
import uuid

import numpy as np

from dfkt_jax import files

MAX_OPEN_FILES = 64
"""Open files of one `ChunkedArray`; systems allow 256 or more per process."""


class ChunkedArray:
  """One array [n, ...] in several .npy files.

  It has len, shape and dtype. Indexing with an integer, a slice or an array of
  integers copies these rows. Several threads may read it, and pickling stores
  only the paths.
  """

  def __init__(self, paths: Sequence[Path]):
    self._paths = paths
    self._chunk = functools.lru_cache(MAX_OPEN_FILES)(
      lambda number: np.load(paths[number], mmap_mode="r")
    )
    counts = [len(self._chunk(number)) for number in range(len(paths))]
    self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    self.dtype = self._chunk(0).dtype
    self.shape = (int(self._starts[-1]), *self._chunk(0).shape[1:])

  def __reduce__(self) -> tuple:
    return ChunkedArray, (self._paths,)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: Any) -> np.ndarray:
    if isinstance(index, slice):
      index = np.arange(*index.indices(len(self)))
    index = np.asarray(index)
    flat = np.atleast_1d(index)
    if len(flat) and not (-len(self) <= flat.min() and flat.max() < len(self)):
      raise IndexError(f"row {flat.min()} or {flat.max()} of {len(self)}")
    flat = flat % max(len(self), 1)
    rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
    chunk = np.searchsorted(self._starts, flat, side="right") - 1
    for number in np.unique(chunk):
      inside = chunk == number
      local = flat[inside] - self._starts[number]
      rows[inside] = self._chunk(int(number))[local]
    return rows[0] if index.ndim == 0 else rows


class ChunkedNames:
  """Lines of several text files, read one file at a time."""

  def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
    self._arguments = paths, counts
    self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    self._lines = functools.lru_cache(maxsize=4)(
      lambda number: paths[number].read_bytes().decode().split("\n")
    )

  def __reduce__(self) -> tuple:
    return ChunkedNames, self._arguments

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> str:
    return self.take(np.array([index]))[0]

  def take(self, index: np.ndarray) -> list[str]:
    """Return the names of i64[n] rows, in the order of `index`."""
    if len(index) and not 0 <= index.min() <= index.max() < len(self):
      raise IndexError(f"row {index.min()} or {index.max()} of {len(self)}")
    chunk = np.searchsorted(self._starts, index, side="right") - 1
    names = np.empty(len(index), object)
    for number in np.unique(chunk):
      lines = np.array(self._lines(int(number)), object)
      inside = chunk == number
      names[inside] = lines[index[inside] - self._starts[number]]
    return names.tolist()


def save_npy(path: Path, array: np.ndarray) -> None:
  """Write a temporary .npy file and rename it to `path`."""
  unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
  temporary = path.with_name(f".{path.name}.{unique}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "xb") as file:
      np.save(file, array)
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise files.unwritable(path, error) from error
