"""States on disk, through Orbax; no other file knows it.

A state is saved as a flat dictionary from the path of each leaf to the leaf, so
that a checkpoint can be inspected and static parts of a state (modules) never
reach the disk. Saving is asynchronous; what a kill leaves unfinished is passed
over.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dfkt_jax import files
from dfkt_jax.errors import DfktError

# Orbax reports every save at INFO and every barrier at WARNING.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
  """The last two checkpoints of a run, in `directory`; a context manager."""

  def __init__(self, directory: Path):
    self._directory = directory
    try:
      directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise files.unwritable(directory, error) from error
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

  def latest(self) -> int | None:
    """The step of the newest finished checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Begins to save; `state` may be donated at once."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_flat(state)), meta=ocp.args.JsonSave(meta)
      ),
    )

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """The state and meta of a step, shaped and placed as `like`.

    Raises:
      DfktError: the checkpoint cannot be read or is of another state.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      _flat(like),
    )
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          meta=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError, OSError) as error:
      reason = str(error).splitlines()[0][:200]
      raise DfktError(
        f"checkpoint {self._directory / str(step)} cannot be restored"
        f" ({reason}): remove that folder to go on from the one before it, or,"
        " if another version of dfkt wrote it, use another --workdir"
      ) from error
    leaves = [restored["state"][name] for name in _flat(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), restored[
      "meta"
    ]

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._manager.wait_until_finished()
    self._manager.close()


def _flat(state):
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
