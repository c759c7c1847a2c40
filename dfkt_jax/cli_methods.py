"""Commands that carry out an experiment of a method."""

import dataclasses
import re
from typing import Any

import tyro

from dfkt_jax import flags
from dfkt_jax.errors import UsageError


def distill(args: list[str]) -> None:
  """`dfkt distill METHOD`."""
  from dfkt_jax import methods

  known = {**methods.SYNTHESIZERS, **methods.OPENWORLD, **methods.STORED}
  name, rest = flags.method_name("distill", args, known)
  method = methods.find(name, known)
  if method in methods.STORED.values():
    _offline(method, rest)
    return
  carry_out = _open_world if methods.is_open_world(method) else _data_free
  carry_out(name, method, rest)


def _offline(method: type, args: list[str]) -> None:
  from dfkt_jax.commands.offline import DistillOffline

  default = DistillOffline(
    method=method(),
    teacher=tyro.MISSING,
    student=tyro.MISSING,
    transfer_set=tyro.MISSING,
  )
  _carry_out("distill offline", DistillOffline, default, args)


def _data_free(name: str, method: type, args: list[str]) -> None:
  from dfkt_jax import methods
  from dfkt_jax.commands.distill import Distill
  from dfkt_jax.distillation.kd import KD
  from dfkt_jax.distillation.transfer import Transfer
  from dfkt_jax.driver import RunOptions

  default = Distill(
    method=flags.default(method, Distill, Transfer, KD, RunOptions),
    transfer=methods.transfer_recipe(method),
    teacher=tyro.MISSING,
    student=tyro.MISSING,
  )
  _carry_out(f"distill {name}", Distill[method], default, args)


def _open_world(name: str, method: type, args: list[str]) -> None:
  from dfkt_jax.commands.openworld import DistillOpenWorld
  from dfkt_jax.distillation.kd import KD
  from dfkt_jax.driver import RunOptions
  from dfkt_jax.openworld.contract import Study

  default = DistillOpenWorld(
    method=flags.default(method, DistillOpenWorld, Study, KD, RunOptions),
    study=getattr(method, "study", Study()),
    teacher=tyro.MISSING,
    student=tyro.MISSING,
    pool=tyro.MISSING,
  )
  _carry_out(f"distill {name}", DistillOpenWorld[method], default, args)


def synthesize(args: list[str]) -> None:
  """`dfkt synthesize METHOD`."""
  from dfkt_jax import methods
  from dfkt_jax.commands.synthesize import Synthesize
  from dfkt_jax.driver import RunOptions

  name, rest = flags.method_name("synthesize", args, methods.SYNTHESIZERS)
  method = methods.find(name, methods.SYNTHESIZERS)
  default = Synthesize(
    method=flags.default(method, Synthesize, RunOptions), teacher=tyro.MISSING
  )
  _carry_out(f"synthesize {name}", Synthesize[method], default, rest)


def adapt(args: list[str]) -> None:
  """`dfkt adapt METHOD`."""
  from dfkt_jax import methods
  from dfkt_jax.adaptation.course import Course
  from dfkt_jax.commands.adapt import Adapt
  from dfkt_jax.driver import RunOptions

  name, rest = flags.method_name("adapt", args, methods.ADAPTERS)
  method = methods.find(name, methods.ADAPTERS)
  default = Adapt(
    method=flags.default(method, Adapt, Course, RunOptions),
    course=getattr(method, "course", Course()),
    source=tyro.MISSING,
    target=tyro.MISSING,
  )
  _carry_out(f"adapt {name}", Adapt[method], default, rest)


def train(args: list[str]) -> None:
  """`dfkt teacher train`."""
  from dfkt_jax.commands.train import TrainTeacher
  from dfkt_jax.distillation.supervised import RECIPES

  name, args = flags.option("--recipe", args, "supervised")
  if name not in RECIPES:
    raise UsageError(
      f"--recipe {name} is unknown: expected one of {', '.join(RECIPES)}"
    )
  default = TrainTeacher(
    recipe=RECIPES[name], arch=tyro.MISSING, dataset=tyro.MISSING
  )
  # --out as in 'teacher import': the workdir stands for the network in it.
  args = [re.sub(r"^--out(?=$|=)", "--workdir", arg) for arg in args]
  _carry_out("teacher train", TrainTeacher, default, args)


def _carry_out(command: str, kind: Any, default: Any, args: list[str]) -> None:
  """Fills an experiment and how to run it from flags, runs it, shows it.

  Args:
    kind: the experiment's type, its method's filled in where it has one.
    default: of the experiment, tyro.MISSING for what has to be given.
  """
  from dfkt_jax.driver import RunOptions

  # The names of these two fields are what --help puts above their flags.
  name = command.split()[0]
  both = dataclasses.make_dataclass(
    kind.__name__, [(name, kind), ("run", RunOptions)], frozen=True
  )
  both.__doc__ = kind.__doc__
  options = RunOptions(workdir=tyro.MISSING)
  filled = flags.parse(both, command, args, both(default, options))
  run_and_show(getattr(filled, name), filled.run)


def run_and_show(experiment: Any, options: Any) -> None:
  """Runs it with `RunOptions`, on all processes that there are."""
  from dfkt_jax import parallel
  from dfkt_jax.commands.show import show_result

  parallel.start(apart=getattr(experiment, "apart", False))
  show_result(experiment.run(options), options.workdir)
