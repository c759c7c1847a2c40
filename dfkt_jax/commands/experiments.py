"""`dfkt run`: named experiments from a Python module.

An experiment is anything with `run(options: RunOptions) -> dict`: a Distill, a
Synthesize, a TrainTeacher, or a dataclass of one's own.
"""

from collections.abc import Sequence
import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from dfkt_jax.commands import overrides
from dfkt_jax.driver import RunOptions
from dfkt_jax.errors import UsageError
from dfkt_jax.methods import load_module


def find(text: str) -> dict[str, Any]:
  """The experiments of MODULE, a dotted name or a path to a .py file."""
  if text.endswith(".py") or "/" in text:
    module = load_module(Path(text), f"experiment {text!r}")
  else:
    try:
      module = importlib.import_module(text)
    except Exception as error:
      raise UsageError(
        f"experiment module {text!r} cannot be imported"
        f" ({type(error).__name__}: {error}): give a module on the Python path,"
        " or a path such as experiments/NAME.py"
      ) from error
  found = {
    name: value
    for name, value in vars(module).items()
    if not name.startswith("_")
    and not isinstance(value, type | ModuleType)
    and callable(getattr(value, "run", None))
  }
  if not found:
    raise UsageError(
      f"{text} defines no experiment: expected a module-level name with a"
      " run(options) method, such as dfkt_jax.commands.distill.Distill(...)"
    )
  return found


def split(text: str) -> tuple[str, str | None]:
  """MODULE[:NAME] -> (MODULE, NAME or None)."""
  module, colon, name = text.rpartition(":")
  return (module, name) if colon else (text, None)


@dataclasses.dataclass(frozen=True)
class RunExperiment:
  """Runs a named experiment; the workdir says which and with what seed."""

  options: RunOptions
  seed: int | None = None  # in place of the experiment's own
  # FIELD=VALUE words for other fields, such as transfer.kd.lr=0.1
  set: tuple[str, ...] = ()


def choose(
  text: str, seed: int | None = None, settings: Sequence[str] = ()
) -> Any:
  """MODULE:NAME; NAME may be left out where there is just one.

  Args:
    seed: in place of the experiment's own.
    settings: FIELD=VALUE words, see `overrides`.

  Raises:
    UsageError: there is no such experiment, or it has no such field to replace.
  """
  module, name = split(text)
  found = find(module)
  if name is None:
    if len(found) > 1:
      raise UsageError(
        f"{module} has {len(found)} experiments ({', '.join(found)}): name one"
        f" as {module}:{next(iter(found))}"
      )
    name = next(iter(found))
  if name not in found:
    raise UsageError(
      f"{module} has no experiment {name!r}: expected one of {', '.join(found)}"
    )
  experiment = found[name]
  if seed is not None:
    if not dataclasses.is_dataclass(experiment) or not hasattr(
      experiment, "seed"
    ):
      raise UsageError(
        f"--seed is {seed} and {text} is no dataclass with a seed: leave the"
        " flag out"
      )
    experiment = dataclasses.replace(experiment, seed=seed)  # type: ignore
  return overrides.replaced(experiment, settings)
