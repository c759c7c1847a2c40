"""The log of a run, `workdir/metrics.jsonl`: one JSON object a line.

Process 0 writes it.
"""

from collections.abc import Callable, Mapping
import json
import os
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from dfkt_jax import files
from dfkt_jax.errors import UsageError

FILE_NAME = "metrics.jsonl"
_NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


class MetricsWriter:
  """Append lines `{"step": 1, "wall": 0.5, "distill/kl": 0.1}`, each flushed.

  Every process may have a writer; only that of process 0 writes, or one that is
  `alone`. `wall` is seconds of running, summed over resumptions.

  Args:
    workdir: the folder that holds `metrics.jsonl`.
    tensorboard: also write `workdir/tensorboard` (needs `tensorboardX`).
    resume_step: the step from which the run resumes. Lines past it are dropped,
      so that a killed and resumed run leaves the lines of an uninterrupted one
      (write a step's line before its checkpoint is saved). -1 starts over; None
      keeps every complete line.
    alone: this process is the only one with a writer for this folder.
    clock: returns seconds, for tests.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    tensorboard: bool = False,
    resume_step: int | None = None,
    alone: bool = False,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._path = Path(workdir) / FILE_NAME
    self._file = self._board = None
    self._clock = clock
    if jax.process_index() != 0 and not alone:
      return
    self._started = clock() - _drop_after(self._path, resume_step)
    if tensorboard:
      self._board = _board(self._path.parent / "tensorboard", resume_step)
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._path, "ab")  # noqa: SIM115 (closed by close)
    except OSError as error:
      raise files.unwritable(self._path, error) from error

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Append one line; values are scalars, on the host or a device."""
    if self._file is None:
      return
    values = {
      key: _scalar(key, value)
      for key, value in jax.device_get(dict(metrics)).items()
    }
    wall = round(self._clock() - self._started, 3)
    record = {"step": int(step), "wall": wall, **values}
    line = json.dumps(files.to_json(record, str), allow_nan=False) + "\n"
    try:
      self._file.write(line.encode())
      self._file.flush()
    except OSError as error:
      raise files.unwritable(self._path, error) from error
    if self._board is not None:
      for key, value in values.items():
        self._board.add_scalar(key, value, int(step))

  def close(self) -> None:
    """Close the files; later writes are ignored."""
    for file in (self._file, self._board):
      if file is not None:
        file.close()
    self._file = self._board = None

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Return the lines of a workdir in file order, without torn or foreign ones.

  The strings "nan", "inf" and "-inf" become floats. An unfinished run in parts
  has a log for each part in WORKDIR/shards, whose lines are returned.
  """
  path = Path(workdir) / FILE_NAME
  paths = [path]
  if not path.exists():
    parts = Path(workdir).glob(f"shards/*/{FILE_NAME}")
    paths = sorted(parts, key=lambda path: (len(str(path)), str(path)))
  rows = [_row(line) for path in paths for line in _lines(path)]
  return [
    {
      key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
      for key, value in row.items()
    }
    for row in rows
    if row is not None
  ]


def _lines(path: Path) -> list[bytes]:
  try:
    return path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise files.unreadable(path, error) from error


def _row(line: bytes) -> dict[str, Any] | None:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    return None
  whole = isinstance(row, dict) and type(row.get("step")) is int
  return row if whole else None


def _scalar(key: str, value: Any) -> int | float:
  if key in ("step", "wall"):
    raise ValueError(f"metric {key!r} would hide the line's own {key!r}")
  if isinstance(value, np.generic | np.ndarray):
    value = value.item()
  if not isinstance(value, int | float):
    raise TypeError(f"metric {key!r} is {value!r}, expected a number")
  return value


def _drop_after(path: Path, step: int | None) -> float:
  """Drop lines past `step` from the file; return the last kept wall time."""
  lines = _lines(path)
  rows = [(line, _row(line)) for line in lines]
  kept = [
    (line, row)
    for line, row in rows
    if row is not None and (step is None or row["step"] <= step)
  ]
  whole = [line for line, _ in kept] + [b""]
  if lines and whole != lines:
    files.write_atomic(path, b"\n".join(whole))
  wall = kept[-1][1].get("wall") if kept else None
  return wall if isinstance(wall, int | float) else 0.0


def _board(path: Path, resume_step: int | None):
  try:
    from tensorboardX import SummaryWriter
  except ImportError as error:
    raise UsageError(
      "--tensorboard is given and tensorboardX is not installed: run"
      " `pip install 'dfkt-jax[tensorboard]'`, or leave it out"
    ) from error
  purge = None if resume_step is None else resume_step + 1
  return SummaryWriter(str(path), purge_step=purge)
