"""Data-free knowledge transfer in JAX.

  network, card = dfkt_jax.load("teacher")
  dfkt_jax.Distill(...).run(dfkt_jax.RunOptions(Path("workdir")))

Every public name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dfkt_jax.commands.adapt import Adapt
  from dfkt_jax.commands.distill import Distill
  from dfkt_jax.commands.synthesize import Synthesize
  from dfkt_jax.commands.train import TrainTeacher as Train
  from dfkt_jax.contracts import Batch, Context
  from dfkt_jax.evaluation.evaluator import evaluate
  from dfkt_jax.network import InputSpec, Network
  from dfkt_jax.runs.driver import RunOptions
  from dfkt_jax.teachers import export, load, save

__version__ = "0.2.0"

__all__ = [
  "Adapt",
  "Batch",
  "Context",
  "Distill",
  "InputSpec",
  "Network",
  "RunOptions",
  "Synthesize",
  "Train",
  "__version__",
  "evaluate",
  "export",
  "load",
  "save",
]

_PLACES = {
  "Adapt": "commands.adapt:Adapt",
  "Batch": "contracts:Batch",
  "Context": "contracts:Context",
  "Distill": "commands.distill:Distill",
  "InputSpec": "network:InputSpec",
  "Network": "network:Network",
  "RunOptions": "runs.driver:RunOptions",
  "Synthesize": "commands.synthesize:Synthesize",
  "Train": "commands.train:TrainTeacher",
  "evaluate": "evaluation.evaluator:evaluate",
  "export": "teachers:export",
  "load": "teachers:load",
  "save": "teachers:save",
}


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, attribute = _PLACES[name].partition(":")
  value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  dunders = [name for name in globals() if name.startswith("__")]
  return sorted({*__all__, *dunders})
