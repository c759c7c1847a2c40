"""Checkpoints of one process among several, independent of the others.

Orbax saves states that all processes hold together. With several processes it
accepts neither arrays on the devices of one process nor, except from the first
process, host arrays. Here a state is one npz file of host arrays, so that any
process, with any devices, can resume from it.
"""

import io
import json
from pathlib import Path
from typing import Any
import zipfile

import jax
import numpy as np

from dfkt_jax import files
from dfkt_jax.errors import DfktError
from dfkt_jax.runs import flat_state

_META = "meta"  # names of leaves begin with a bracket or a dot
_KEPT = 2


class LocalCheckpoints:
  """`checkpoints.Checkpoints` for one process; saving is synchronous."""

  def __init__(self, directory: Path):
    self._directory = directory

  def latest(self) -> int | None:
    """Return the step of the newest checkpoint."""
    return max(self._steps(), default=None)

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Save, and keep the last two."""
    buffer = io.BytesIO()
    arrays = jax.device_get(flat_state.flatten(state))
    np.savez(buffer, **{_META: np.array(json.dumps(meta)), **arrays})
    files.write_atomic(self._path(step), buffer.getvalue())
    for old in sorted(self._steps())[:-_KEPT]:
      self._path(old).unlink(missing_ok=True)

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """Return the state, shaped and sharded as `like`, and the meta of a step.

    Raises:
      DfktError: the checkpoint cannot be read or holds another state.
    """
    path = self._path(step)
    try:
      with open(path, "rb") as file, np.load(file) as stored:
        meta = json.loads(str(stored[_META]))
        leaves = {
          name: _put(stored[name], x)
          for name, x in flat_state.flatten(like).items()
        }
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
      reason = str(error).splitlines()[0][:200]
      raise DfktError(
        f"checkpoint {path} cannot be restored ({reason}): remove it to resume"
        " from the one before it, or use another --workdir"
      ) from error
    return flat_state.unflatten(leaves, like), meta

  def __enter__(self) -> "LocalCheckpoints":
    return self

  def __exit__(self, *_) -> None:
    pass

  def _steps(self) -> list[int]:
    paths = self._directory.glob("*.npz")
    return [int(path.stem) for path in paths if path.stem.isdigit()]

  def _path(self, step: int) -> Path:
    return self._directory / f"{step}.npz"


def _put(array: np.ndarray, like: jax.Array) -> jax.Array:
  if array.dtype.kind == "V":  # npz files have no bfloat16
    array = array.view(like.dtype)
  if array.shape != like.shape or array.dtype != like.dtype:
    raise ValueError(
      f"{array.dtype}{list(array.shape)} there, {like.dtype}{list(like.shape)}"
      " now"
    )
  return jax.device_put(array, like.sharding)
