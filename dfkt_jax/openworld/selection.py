"""Which images of a pool a student learns from: a CSV file, one image a row.

Columns: `index` and `name` in the pool, `class` and `confidence` as the teacher
sees it, and `score`, by which the method ranks, the best first. A selection can
be read, thinned out, sorted, and given to another run.
"""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.errors import UsageError

COLUMNS = ("index", "name", "class", "confidence", "score")


@dataclasses.dataclass(frozen=True)
class Selection:
  """Images of the pool, the best first."""

  index: np.ndarray  # i64[count]
  score: np.ndarray  # f32[count], by which the method ranks


def write(
  path: Path,
  selection: Selection,
  pool: ImagePool,
  decision: np.ndarray,
  confidence: np.ndarray,
) -> None:
  """Writes the CSV; `decision` and `confidence` are of the whole pool."""
  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(COLUMNS)
  names = pool.names.take(selection.index)
  for i, name, score in zip(selection.index, names, selection.score):
    row = (i, name, decision[i], f"{confidence[i]:.4f}", f"{score:.6g}")
    table.writerow(row)
  files.write_atomic(path, text.getvalue().encode())


def read(path: Path, pool: ImagePool) -> Selection:
  """A selection from this pool.

  Raises:
    UsageError: it cannot be read, or names other images than the pool has.
  """
  try:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    index = np.array([int(row["index"]) for row in rows], np.int64)
    score = np.array([float(row["score"]) for row in rows], np.float32)
    names = [row["name"] for row in rows]
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (KeyError, TypeError, ValueError) as error:
    raise UsageError(
      f"--selection {path} is no table with the columns {', '.join(COLUMNS)}"
      f" ({error}): give the selection.csv of a workdir"
    ) from error
  if not len(index):
    raise UsageError(f"--selection {path} names no image: give one that does")
  inside = (index >= 0) & (index < len(pool))
  found = pool.names.take(np.where(inside, index, 0))
  for i, there, name, fits in zip(index, found, names, inside):
    if not fits or there != name:
      raise UsageError(
        f"--selection {path} names image {i} {name} and {pool.text} has"
        f" {there if fits else 'nothing'} there: give the pool it was made from"
      )
  return Selection(index, score)
