"""States of one process among others on disk, without a word to those.

Orbax saves what all processes hold together: among several it takes neither
arrays that are on one's own devices alone nor, but for the first process, host
arrays. Here a state is one npz file of host arrays, so that any process, with
any devices, goes on from it.
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

_META = "meta"  # states have names in brackets or behind a dot
_KEPT = 2


class LocalCheckpoints:
  """As `checkpoint.Checkpoints`, for one process; saving is synchronous."""

  def __init__(self, directory: Path):
    self._directory = directory

  def latest(self) -> int | None:
    """The step of the newest checkpoint."""
    return max(self._steps(), default=None)

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Saves; the last two are kept."""
    buffer = io.BytesIO()
    arrays = {_META: np.array(json.dumps(meta)), **jax.device_get(_flat(state))}
    np.savez(buffer, **arrays)
    files.write_atomic(self._path(step), buffer.getvalue())
    for old in sorted(self._steps())[:-_KEPT]:
      self._path(old).unlink(missing_ok=True)

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """The state and meta of a step, shaped and placed as `like`.

    Raises:
      DfktError: the checkpoint cannot be read or is of another state.
    """
    path, flat = self._path(step), _flat(like)
    try:
      with open(path, "rb") as file, np.load(file) as held:
        meta = json.loads(str(held[_META]))
        leaves = [_put(held[name], x) for name, x in flat.items()]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
      reason = str(error).splitlines()[0][:200]
      raise DfktError(
        f"checkpoint {path} cannot be restored ({reason}): remove it to go on"
        " from the one before it, or use another --workdir"
      ) from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta

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
  if array.dtype.kind == "V":  # npz files do not know bfloat16
    array = array.view(like.dtype)
  if array.shape != like.shape or array.dtype != like.dtype:
    raise ValueError(
      f"{array.dtype}{list(array.shape)} there, {like.dtype}{list(like.shape)}"
      " now"
    )
  return jax.device_put(array, like.sharding)


def _flat(state: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
