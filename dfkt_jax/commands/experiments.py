"""`dfkt run`: named experiments from a Python module.

An experiment is an object with `run(options: RunOptions) -> dict`: a Distill, a
Synthesize, an Adapt, a TrainTeacher, or a dataclass of the user's.
"""

from collections.abc import Sequence
import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from dfkt_jax import user_modules
from dfkt_jax.errors import UsageError
from dfkt_jax.runs import overrides
from dfkt_jax.runs.driver import RunOptions


@runtime_checkable
class Runnable(Protocol):
  """Settings, and how to run them."""

  def run(self, options: RunOptions) -> dict:
    """Run to the end, or resume; return the contents of result.json."""
    ...


@runtime_checkable
class SharesOutBatches(Runnable, Protocol):
  """An experiment whose processes may not need each other."""

  @property
  def independent(self) -> bool:
    """Return whether each process works by itself."""
    ...


@dataclasses.dataclass(frozen=True)
class RunExperiment:
  """Runs a named experiment; flags replace its settings."""

  options: RunOptions
  # FIELD=VALUE words for settings, such as lr=0.1 or learner.lr=0.1
  set: tuple[str, ...] = ()


def find(text: str) -> dict[str, Runnable]:
  """Return the experiments of MODULE, a dotted name or a path to a .py file.

  Raises:
    UsageError: the module cannot be imported, or defines no experiment.
  """
  if text.endswith(".py") or "/" in text:
    module = user_modules.load_module(Path(text), f"experiment {text!r}")
  else:
    try:
      module = importlib.import_module(text)
    except Exception as error:
      advice = (
        "give a module on the Python path, or a path such as"
        " experiments/NAME.py"
      )
      raise UsageError(
        f"experiment module {text!r} cannot be imported:"
        f" {user_modules.describe_failure(error, advice)}"
      ) from error
  found = {
    name: value
    for name, value in vars(module).items()
    if not name.startswith("_")
    and not isinstance(value, type | ModuleType)
    and isinstance(value, Runnable)
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


def choose(text: str, settings: Sequence[str] = ()) -> Runnable:
  """Return MODULE:NAME; NAME may be left out where the module has just one.

  Args:
    settings: FIELD=VALUE words, see `overrides`.

  Raises:
    UsageError: there is no such experiment, or it has no such field.
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
  return overrides.replaced(found[name], settings)
