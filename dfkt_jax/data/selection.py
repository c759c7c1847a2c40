"""CSV files of the images that were selected from a pool, one image a row.

Columns: `index` and `name` in the pool, `class` and `confidence` as the teacher
predicts them, `score`, by which the method ranks, the best first, and `pool`,
the digest of the pool that `index` refers to. A selection can be read, thinned
out, sorted, and given to another run.
"""

import csv
import io
from pathlib import Path

import numpy as np

from dfkt_jax import files
from dfkt_jax.contracts import Selection
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.errors import UsageError

COLUMNS = ("index", "name", "class", "confidence", "score", "pool")


def write(
  path: Path,
  selection: Selection,
  pool: ImagePool,
  decision: np.ndarray,
  confidence: np.ndarray,
) -> None:
  """Write the CSV.

  Args:
    decision: the teacher's top class of every image of the pool, i32[n].
    confidence: its probability, f32[n].
  """
  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(COLUMNS)
  names = pool.names.take(selection.index)
  for i, name, score in zip(selection.index, names, selection.score):
    predicted = decision[i], f"{confidence[i]:.4f}"
    table.writerow((i, name, *predicted, f"{score:.6g}", _digest(pool)))
  files.write_atomic(path, text.getvalue().encode())


def read(path: Path, pool: ImagePool) -> Selection:
  """Read a selection from this pool.

  Raises:
    UsageError: it cannot be read, is of another pool, or names an image twice
      or one that the pool lacks.
  """
  try:
    with open(path, newline="", encoding="utf-8") as file:
      rows = list(csv.DictReader(file))
    index = np.array([int(row["index"]) for row in rows], np.int64)
    score = np.array([float(row["score"]) for row in rows], np.float32)
    pools = {row["pool"] for row in rows}
  except OSError as error:
    raise files.unreadable(path, error) from error
  except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
    raise UsageError(
      f"{path} is not a table with the columns {', '.join(COLUMNS)} ({error}):"
      " give the selection.csv of a workdir"
    ) from error
  if not len(index):
    raise UsageError(f"{path} names no image: give a selection of one or more")
  if pools != {_digest(pool)}:
    raise UsageError(
      f"{path} is of the pool {', '.join(sorted(map(str, pools)))} and"
      f" {pool.text} is {_digest(pool)}: give the pool it was made from,"
      " unchanged since then"
    )
  _check(path, index, score, pool)
  return Selection(index, score)


def _check(path, index, score, pool):
  outside = index[(index < 0) | (index >= len(pool))]
  numbers, counts = np.unique(index, return_counts=True)
  if len(outside):
    wrong = f"image {outside[0]}, and {pool.text} has {len(pool)}"
  elif counts.max() > 1:
    wrong = f"image {numbers[counts.argmax()]} more than once"
  elif not np.isfinite(score).all():
    wrong = f"a score of {score[~np.isfinite(score)][0]}"
  else:
    return
  raise UsageError(f"{path} has {wrong}: take that row out")


def _digest(pool):
  return pool.fingerprint[:16]
