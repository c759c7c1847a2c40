"""The one skeleton of every command that runs: check, prepare, claim, drive.

An experiment is a frozen dataclass whose fields are its settings, with a method
`prepare`. Everything that can be refused is refused before anything is written.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh

from dfkt_jax import files, teachers
from dfkt_jax.network import Network
from dfkt_jax.runs import checks, workdir
from dfkt_jax.runs.driver import RunOptions


class Finished(NamedTuple):
  """The result and the networks of a run."""

  result: Mapping[str, Any]  # the contents of result.json
  # Networks to save, by their folder in the workdir.
  networks: Mapping[str, tuple[Network, teachers.Card]] = {}
  complete: bool = True  # False: other processes still have work to do


@dataclasses.dataclass(frozen=True)
class Work:
  """A run that is ready to start, and of which nothing has been written."""

  command: str  # as in result.json
  mesh: Mesh
  # Digests of input files, which with the fields identify the run.
  identity: Mapping[str, Any]
  # Called in the claimed workdir and on the mesh, with the result of `load`.
  carry_out: Callable[[Any], Finished]
  # Reads what takes long and may still be refused; a finished run needs none.
  load: Callable[[], Any] = lambda: None
  # Fields that the result does not depend on, such as the place of a cache.
  ignored: tuple[str, ...] = ()
  # This process's number, where processes share the work and need not meet.
  independent_process: int | None = None


class Experiment(Protocol):
  """A command's settings, and how to prepare its run."""

  def prepare(self, options: RunOptions) -> Work:
    """Check all input and return the work; write nothing.

    Raises:
      DfktError: bad input.
    """
    ...


def run(experiment: Experiment, options: RunOptions) -> dict:
  """Run an experiment to its end, or resume it.

  Returns:
    The contents of result.json.

  Raises:
    DfktError: bad input, a loss that is not finite, or a stop signal.
  """
  checks.check(experiment)
  checks.check(options)
  work = experiment.prepare(options)
  config = _config(experiment, work)
  workdir.check(options.workdir, config)
  result = workdir.finished(options.workdir)
  if result is not None:
    return result
  loaded = work.load()
  with _claim(options, config, work), jax.set_mesh(work.mesh):
    result = workdir.finished(options.workdir)
    if result is not None:
      return result
    finished = work.carry_out(loaded)
    if jax.process_index() == 0 and finished.complete:
      for name, (network, card) in finished.networks.items():
        teachers.save(options.workdir / name, network, card, replace=True)
      files.write_json(options.workdir / "result.json", finished.result)
    return dict(finished.result)


def _config(experiment, work) -> dict[str, Any]:
  """The contents of config.json."""
  kept = dataclasses.replace(experiment, **dict.fromkeys(work.ignored))
  return {
    "version": workdir.VERSION,
    "command": work.command,
    **workdir.settings(kept),
    **work.identity,
  }


def _claim(options, config, work) -> contextlib.AbstractContextManager:
  if work.independent_process is None:
    return workdir.claim(options.workdir, config)
  return workdir.share(options.workdir, config, work.independent_process)
