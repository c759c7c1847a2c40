"""`dfkt`: typed sub-commands, nothing but unpacking and calls."""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import os
from pathlib import Path
import sys
from typing import Literal

from rich.console import Console
import tyro

from dfkt_jax import cli_methods, compilation, exits, flags
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
    flags.say(COMMANDS)
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


def _import(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Import

  flags.say(flags.parse(Import, "teacher import", args).run())


def _evaluate(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Evaluate
  from dfkt_jax.commands.show import show_evaluation

  show_evaluation(flags.parse(Evaluate, "evaluate", args).run())


def _export(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Export

  flags.say(flags.parse(Export, "export", args).run())


@dataclasses.dataclass(frozen=True)
class Report:
  """Writes one self-contained HTML file about one or several workdirs."""

  workdirs: Positional[tuple[Path, ...]]
  out: Path | None = None  # default: report.html in the first workdir


def _report(args: list[str]) -> None:
  from dfkt_jax.report import report

  command = flags.parse(Report, "report", args)
  if not command.workdirs:
    raise UsageError("dfkt report needs at least one workdir: name its folder")
  flags.say(f"report: {report(command.workdirs, command.out)}")


def _run(args: list[str]) -> None:
  from dfkt_jax.commands import experiments
  from dfkt_jax.commands.show import show_names

  if args[:1] in (["-h"], ["--help"]):
    flags.parse(experiments.RunExperiment, "run MODULE[:NAME]", args)
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
  rest = flags.gathered("--set", rest)
  command = flags.parse(experiments.RunExperiment, f"run {text}", rest)
  experiment = experiments.choose(text, command.seed, command.set)
  cli_methods.run_and_show(experiment, command.options)


@dataclasses.dataclass(frozen=True)
class List:
  """Lists what there is."""

  what: Positional[
    Literal["methods", "archs", "presets", "datasets", "experiments"]
  ]


def _bench(args: list[str]) -> None:
  from dfkt_jax.commands.bench import Bench

  args = flags.gathered("--set", args)
  flags.parse(Bench, "bench", args).run(Console(soft_wrap=True))


def _list(args: list[str]) -> None:
  from dfkt_jax.commands.show import show_list

  show_list(flags.parse(List, "list", args).what)


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
  command = flags.parse(Quickstart, "quickstart", args)
  from dfkt_jax import quickstart
  from dfkt_jax.commands.show import show_table

  table, page = quickstart.run(command.workdir, command.seed)
  show_table(table)
  flags.say(f"report: {page}")


def _teacher(args: list[str]) -> None:
  text = (
    "usage: dfkt teacher import FILE --arch NAME [--preset NAME] --out DIR\n"
    "       dfkt teacher train --arch NAME --dataset DATA --out DIR"
  )
  if not args:
    raise UsageError(f"dfkt teacher needs 'import' or 'train'\n{text}")
  flags.say(text)


def _write_data(args: list[str]) -> None:
  from dfkt_jax.commands.data import Write

  flags.say(flags.parse(Write, "data write", args).run())


def _data(args: list[str]) -> None:
  text = "usage: dfkt data write NAME --split SPLIT=DATA [--data-dir DIR]"
  if not args:
    raise UsageError(f"dfkt data needs 'write'\n{text}")
  flags.say(text)


_GROUPS = ("teacher", "data")
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
  "quickstart": _quickstart,
  "teacher": _teacher,
  "teacher import": _import,
  "teacher train": cli_methods.train,
  "data": _data,
  "data write": _write_data,
  "evaluate": _evaluate,
  "synthesize": cli_methods.synthesize,
  "distill": cli_methods.distill,
  "adapt": cli_methods.adapt,
  "run": _run,
  "export": _export,
  "report": _report,
  "bench": _bench,
  "list": _list,
}
_ON_A_MESH = ("teacher train", "synthesize", "distill", "adapt", "run")
