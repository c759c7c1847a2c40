"""Checkpoints of a run, saved by Orbax, which no other file imports.

A state is saved as a flat dictionary (flat_state.py). Saving is asynchronous; a
checkpoint that a kill left unfinished is ignored.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dfkt_jax import files
from dfkt_jax.errors import DfktError
from dfkt_jax.runs import flat_state

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
    """Return the step of the newest finished checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Begin to save; `state` may be donated immediately."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(flat_state.flatten(state)),
        meta=ocp.args.JsonSave(meta),
      ),
    )

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """Return the state, shaped and sharded as `like`, and the meta of a step.

    Raises:
      DfktError: the checkpoint cannot be read or holds another state.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      flat_state.flatten(like),
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
        f" ({reason}): remove that folder to resume from the one before it, or,"
        " if another version of dfkt wrote it, use another --workdir"
      ) from error
    state = flat_state.unflatten(restored["state"], like)
    return state, restored["meta"]

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self._manager.wait_until_finished()
    self._manager.close()
