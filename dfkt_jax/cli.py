"""`dfkt`: typed sub-commands, nothing but unpacking and calls."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import difflib
import os
from pathlib import Path
import re
import sys
from typing import Any, Literal

from rich.console import Console
import tyro

from dfkt_jax import compilation, exits
from dfkt_jax.errors import UsageError

Positional = tyro.conf.Positional

COMMANDS = """\
usage: dfkt COMMAND ...

  quickstart            distil a digit classifier without its data, 2 minutes
  teacher import        a PyTorch checkpoint file becomes a network directory
  teacher train         trains a teacher where there is no file
  data write            a dataset as one that is streamed from disk
  evaluate              accuracy, calibration and agreement of a network
  synthesize METHOD     images out of a teacher, as a dataset
  distill METHOD        a smaller student out of a teacher
  adapt METHOD          a model for another domain out of its unlabelled images
  run MODULE[:NAME]     a named experiment
  export                a network directory becomes a PyTorch file
  report WORKDIR...     one HTML file: curves, images, tables, settings
  bench WORKLOAD        times, as JSON lines, and beside PyTorch's
  list WHAT             methods, archs, presets, datasets or experiments

Every command has --help, and --debug for the traceback of a failure. The same
command with the same --workdir resumes.
Exit codes: 0 done, 1 failed, 2 bad use, 75 preempted and saved (run it again).
"""


def main(argv: Sequence[str] | None = None) -> None:
  """Entry point; exits with the code of `errors`."""
  args = list(sys.argv[1:] if argv is None else argv)
  debug = "--debug" in args
  args = [arg for arg in args if arg != "--debug"]
  with exits.explained(debug):
    _dispatch(args)


def _dispatch(args: list[str]) -> None:
  if not args or args[0] in ("-h", "--help", "help"):
    _say(COMMANDS)
    return
  command, rest = args[0], args[1:]
  if command in _GROUPS and rest[:1] not in ([], ["-h"], ["--help"]):
    command, rest = f"{command} {rest[0]}", rest[1:]
  if command not in _COMMANDS:
    known = list(_COMMANDS)
    close = difflib.get_close_matches(command, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(
      f"command {command!r} is unknown; {hint}expected one of"
      f" {', '.join(known)} (see dfkt --help)"
    )
  several = os.environ.get("DFKT_PROCESSES", "1")  # as in `parallel`
  if command not in _ON_A_MESH and several != "1":
    raise UsageError(
      f"dfkt {command} runs in one process, and DFKT_PROCESSES is {several}:"
      " run it once, without that"
    )
  if command != "bench":  # which times compilation
    compilation.keep_on_disk()
  _COMMANDS[command](rest)


def _parse(kind: Any, command: str, args: list[str], default: Any = None):
  """Fills a dataclass from flags, its nested dataclasses included."""
  extra = {} if default is None else {"default": default}
  return tyro.cli(
    kind,
    prog=f"dfkt {command}",
    args=args,
    config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    **extra,
  )


def _say(text: str) -> None:
  Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _method_name(
  command: str, args: list[str], known: Iterable[str]
) -> tuple[str, list[str]]:
  """The method, which comes first or behind --method; and the other words."""
  method, args = _option("--method", args, "")
  if method:
    return method, args
  if args and not args[0].startswith("-"):
    return args[0], args[1:]
  names = ", ".join(known)
  if args[:1] in (["-h"], ["--help"]):
    _say(
      f"usage: dfkt {command} METHOD ...\n\nMETHOD is one of {names}, or"
      " path/to/file.py:ClassName for one of your own.\n"
      f"'dfkt {command} METHOD --help' lists its flags."
    )
    sys.exit(0)
  raise UsageError(
    f"dfkt {command} needs a method first: one of {names}, or"
    " path/to/file.py:ClassName"
  )


def _carry_out(command: str, kind: Any, default: Any, args: list[str]) -> None:
  """Fills an experiment and how to run it from flags, runs it, shows it.

  Args:
    kind: the experiment's type, its method's filled in where it has one.
    default: of the experiment, tyro.MISSING for what has to be given.
  """
  from dfkt_jax import parallel
  from dfkt_jax.commands.show import show_result
  from dfkt_jax.driver import RunOptions

  # The names of these two fields are what --help puts above their flags.
  name = command.split()[0]
  both = dataclasses.make_dataclass(
    kind.__name__, [(name, kind), ("run", RunOptions)], frozen=True
  )
  both.__doc__ = kind.__doc__
  options = RunOptions(workdir=tyro.MISSING)
  filled = _parse(both, command, args, both(default, options))
  experiment = getattr(filled, name)
  parallel.start(apart=getattr(experiment, "apart", False))
  result = experiment.run(filled.run)
  show_result(result, filled.run.workdir)


def _distill(args: list[str]) -> None:
  from dfkt_jax import methods

  known = {**methods.SYNTHESIZERS, **methods.OPENWORLD, **methods.STORED}
  name, rest = _method_name("distill", args, known)
  method = methods.find(name, known)
  if method in methods.STORED.values():
    _offline(method, rest)
    return
  distill = _open_world if methods.is_open_world(method) else _data_free
  distill(name, method, rest)


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
    method=_default(method, Distill, Transfer, KD, RunOptions),
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
    method=_default(method, DistillOpenWorld, Study, KD, RunOptions),
    study=getattr(method, "study", Study()),
    teacher=tyro.MISSING,
    student=tyro.MISSING,
    pool=tyro.MISSING,
  )
  _carry_out(f"distill {name}", DistillOpenWorld[method], default, args)


def _synthesize(args: list[str]) -> None:
  from dfkt_jax import methods
  from dfkt_jax.commands.synthesize import Synthesize
  from dfkt_jax.driver import RunOptions

  name, rest = _method_name("synthesize", args, methods.SYNTHESIZERS)
  method = methods.find(name, methods.SYNTHESIZERS)
  default = Synthesize(
    method=_default(method, Synthesize, RunOptions), teacher=tyro.MISSING
  )
  _carry_out(f"synthesize {name}", Synthesize[method], default, rest)


def _adapt(args: list[str]) -> None:
  from dfkt_jax import methods
  from dfkt_jax.adaptation.course import Course
  from dfkt_jax.commands.adapt import Adapt
  from dfkt_jax.driver import RunOptions

  name, rest = _method_name("adapt", args, methods.ADAPTERS)
  method = methods.find(name, methods.ADAPTERS)
  default = Adapt(
    method=_default(method, Adapt, Course, RunOptions),
    course=getattr(method, "course", Course()),
    source=tyro.MISSING,
    target=tyro.MISSING,
  )
  _carry_out(f"adapt {name}", Adapt[method], default, rest)


def _default(method: type, *others: type) -> Any:
  """The method by its defaults, once its flags clash with no other's."""
  taken = {f.name for other in others for f in dataclasses.fields(other)}
  clashing = [f.name for f in dataclasses.fields(method) if f.name in taken]
  if clashing:
    raise UsageError(
      f"method {method.__name__} has a field {clashing[0]!r}, which is a flag"
      " of the command too: rename the field"
    )
  try:
    return method()
  except TypeError as error:
    raise UsageError(
      f"method {method.__name__} cannot be made without arguments ({error}):"
      " give every field a default"
    ) from error


def _train(args: list[str]) -> None:
  from dfkt_jax.commands.train import TrainTeacher
  from dfkt_jax.distillation.supervised import RECIPES

  name, args = _option("--recipe", args, "supervised")
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


def _option(flag: str, args: list[str], default: str) -> tuple[str, list[str]]:
  """The value of a flag that decides what the others mean; and the others."""
  args = [
    word
    for arg in args
    for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
  ]
  if flag not in args[:-1]:
    return default, args
  place = args.index(flag)
  return args[place + 1], args[:place] + args[place + 2 :]


def _import(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Import

  _say(_parse(Import, "teacher import", args).run())


def _evaluate(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Evaluate
  from dfkt_jax.commands.show import show_evaluation

  show_evaluation(_parse(Evaluate, "evaluate", args).run())


def _export(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Export

  _say(_parse(Export, "export", args).run())


@dataclasses.dataclass(frozen=True)
class Report:
  """Writes one self-contained HTML file about one or several workdirs."""

  workdirs: Positional[tuple[Path, ...]]
  out: Path | None = None  # default: report.html in the first workdir


def _report(args: list[str]) -> None:
  from dfkt_jax.report import report

  command = _parse(Report, "report", args)
  if not command.workdirs:
    raise UsageError("dfkt report needs at least one workdir: name its folder")
  _say(f"report: {report(command.workdirs, command.out)}")


def _run(args: list[str]) -> None:
  from dfkt_jax import parallel
  from dfkt_jax.commands import experiments
  from dfkt_jax.commands.show import show_names, show_result

  if not args or args[0].startswith("-"):
    raise UsageError(
      "dfkt run needs MODULE[:NAME] first, such as"
      " experiments/digits.py:dfq; --list shows a module's experiments"
    )
  text, rest = args[0], args[1:]
  if "--list" in rest:
    found = experiments.find(experiments.split(text)[0])
    show_names({name: type(value).__name__ for name, value in found.items()})
    return
  command = _parse(experiments.RunExperiment, f"run {text}", rest)
  parallel.start()
  result = experiments.run(text, command.options, command.seed, command.set)
  show_result(result, command.options.workdir)


@dataclasses.dataclass(frozen=True)
class List:
  """Lists what there is."""

  what: Positional[
    Literal["methods", "archs", "presets", "datasets", "experiments"]
  ]


def _bench(args: list[str]) -> None:
  from dfkt_jax.commands.bench import Bench

  _parse(Bench, "bench", args).run(Console(soft_wrap=True))


def _list(args: list[str]) -> None:
  from dfkt_jax.commands.show import show_list

  show_list(_parse(List, "list", args).what)


@dataclasses.dataclass(frozen=True)
class Quickstart:
  """Distils a digit classifier without its data, beside three baselines.

  A teacher learns scikit-learn's real 8x8 digits; then the data is put away and
  a student of a quarter of its size learns from what a generator draws out of
  the teacher. About two minutes on two CPU cores.
  """

  workdir: Path = Path("quickstart")  # rerun with the same one to resume
  seed: int = 0


def _quickstart(args: list[str]) -> None:
  command = _parse(Quickstart, "quickstart", args)
  from dfkt_jax import quickstart
  from dfkt_jax.commands.show import show_table

  table, page = quickstart.run(command.workdir, command.seed)
  show_table(table)
  _say(f"report: {page}")


def _teacher(args: list[str]) -> None:
  text = (
    "usage: dfkt teacher import FILE --arch NAME [--preset NAME] --out DIR\n"
    "       dfkt teacher train --arch NAME --dataset DATA --out DIR"
  )
  if not args:
    raise UsageError(f"dfkt teacher needs 'import' or 'train'\n{text}")
  _say(text)


def _write_data(args: list[str]) -> None:
  from dfkt_jax.commands.data import Write

  _say(_parse(Write, "data write", args).run())


def _data(args: list[str]) -> None:
  text = "usage: dfkt data write NAME --split SPLIT=DATA [--data-dir DIR]"
  if not args:
    raise UsageError(f"dfkt data needs 'write'\n{text}")
  _say(text)


_GROUPS = ("teacher", "data")
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
  "quickstart": _quickstart,
  "teacher": _teacher,
  "teacher import": _import,
  "teacher train": _train,
  "data": _data,
  "data write": _write_data,
  "evaluate": _evaluate,
  "synthesize": _synthesize,
  "distill": _distill,
  "adapt": _adapt,
  "run": _run,
  "export": _export,
  "report": _report,
  "bench": _bench,
  "list": _list,
}
_ON_A_MESH = ("teacher train", "synthesize", "distill", "adapt", "run")
