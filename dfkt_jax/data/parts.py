"""Rows in several .npy files on disk, looked up without reading the rest."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
from typing import Any
import uuid

import numpy as np

from dfkt_jax import files

OPEN = 64
"""Files of one `Parts` that are open at a time: systems allow 256 and more."""


class Parts:
  """Behaves like one array [n, ...]: len, shape, dtype, and lookups by whole
  number, slice, or array of whole numbers, which copy the rows asked for.

  It may be read from several threads and pickled, which takes the paths along
  and not the rows.
  """

  def __init__(self, paths: Sequence[Path]):
    self._paths = paths
    self._part = functools.lru_cache(OPEN)(
      lambda number: np.load(paths[number], mmap_mode="r")
    )
    counts = [len(self._part(number)) for number in range(len(paths))]
    self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    self.dtype = self._part(0).dtype
    self.shape = (int(self._starts[-1]), *self._part(0).shape[1:])

  def __reduce__(self) -> tuple:
    return Parts, (self._paths,)

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
    part = np.searchsorted(self._starts, flat, side="right") - 1
    for number in np.unique(part):
      own = part == number
      rows[own] = self._part(int(number))[flat[own] - self._starts[number]]
    return rows[0] if index.ndim == 0 else rows


class Names:
  """Lines of several text files, read a file at a time."""

  def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
    self._made_of = paths, counts
    self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    self._lines = functools.lru_cache(maxsize=4)(
      lambda number: paths[number].read_bytes().decode().split("\n")
    )

  def __reduce__(self) -> tuple:
    return Names, self._made_of

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> str:
    return self.take(np.array([index]))[0]

  def take(self, index: np.ndarray) -> list[str]:
    """The names of i64[n] rows, however they are ordered."""
    if len(index) and not 0 <= index.min() <= index.max() < len(self):
      raise IndexError(f"row {index.min()} or {index.max()} of {len(self)}")
    part = np.searchsorted(self._starts, index, side="right") - 1
    names = np.empty(len(index), object)
    for number in np.unique(part):
      lines = np.array(self._lines(int(number)), object)
      own = part == number
      names[own] = lines[index[own] - self._starts[number]]
    return names.tolist()


def save(path: Path, array: np.ndarray) -> None:
  """Writes an .npy file beside and renames it."""
  beside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(beside, "xb") as file:
      np.save(file, array)
    os.replace(beside, path)
  except OSError as error:
    beside.unlink(missing_ok=True)
    raise files.unwritable(path, error) from error
