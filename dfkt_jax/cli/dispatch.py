"""`dfkt`: its commands by name."""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import os
from pathlib import Path
import sys
from typing import Literal

from rich.console import Console
import tyro

from dfkt_jax.cli import exits, experiments, flags
from dfkt_jax.devices import compilation_cache
from dfkt_jax.errors import UsageError

Positional = tyro.conf.Positional

COMMANDS = """\
usage: dfkt COMMAND ...

  quickstart            distill a digit classifier without its data, 2 minutes
  teacher import        convert a PyTorch checkpoint into a network directory
  teacher train         train a teacher where there is no checkpoint
  data write            write a dataset in a form that is streamed from disk
  evaluate              measure accuracy, calibration and agreement
  synthesize METHOD     make images from a teacher, as a dataset
  distill SOURCE        train a smaller student on images from SOURCE
                        (--learner NAME: how it learns from them)
  adapt METHOD          adapt a model to unlabelled images of another domain
  run MODULE[:NAME]     run a named experiment; flags change its settings
  export                convert a network directory into a PyTorch file
  report WORKDIR...     write one HTML file: curves, images, tables, settings
  bench WORKLOAD        measure speed, as JSON lines, also against PyTorch
  list WHAT             methods, archs, presets, datasets or experiments

Every command has --help, and --debug for the traceback of a failure. The same
command with the same --workdir resumes.
Exit codes: 0 done, 1 failed, 2 bad use, 75 preempted and saved (run it again).
"""


def main(argv: Sequence[str] | None = None) -> None:
  """Run a command; a failure exits with the code of its error."""
  args = list(sys.argv[1:] if argv is None else argv)
  debug = "--debug" in args
  args = [arg for arg in args if arg != "--debug"]
  with exits.exit_on_error(debug):
    _dispatch(args)


def _dispatch(args: list[str]) -> None:
  if not args or args[0] in ("-h", "--help", "help"):
    flags.print_plain(COMMANDS)
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
  # devices.processes.PROCESSES, which is read without importing jax
  count = os.environ.get("DFKT_PROCESSES", "1")
  if command not in _MULTI_PROCESS and count != "1":
    raise UsageError(
      f"dfkt {command} runs in one process, and DFKT_PROCESSES is {count}:"
      " unset it and run the command once"
    )
  if command != "bench":  # it measures compilation
    compilation_cache.enable()
  _COMMANDS[command](rest)


def _import(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Import

  flags.print_plain(flags.parse(Import, "teacher import", args).run())


def _evaluate(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Evaluate
  from dfkt_jax.commands.show import show_evaluation

  show_evaluation(flags.parse(Evaluate, "evaluate", args).run())


def _export(args: list[str]) -> None:
  from dfkt_jax.commands.networks import Export

  flags.print_plain(flags.parse(Export, "export", args).run())


@dataclasses.dataclass(frozen=True)
class Report:
  """Writes a self-contained HTML file about one or several workdirs."""

  workdirs: Positional[tuple[Path, ...]]
  out: Path | None = None  # default: report.html in the first workdir


def _report(args: list[str]) -> None:
  from dfkt_jax.report.page import report

  command = flags.parse(Report, "report", args)
  if not command.workdirs:
    raise UsageError("dfkt report needs at least one workdir: name its folder")
  flags.print_plain(f"report: {report(command.workdirs, command.out)}")


@dataclasses.dataclass(frozen=True)
class List:
  """Lists the names that commands accept."""

  what: Positional[
    Literal["methods", "archs", "presets", "datasets", "experiments"]
  ]


def _bench(args: list[str]) -> None:
  from dfkt_jax.commands.bench import Bench

  args = flags.collect_repeated("--set", args)
  flags.parse(Bench, "bench", args).run(Console(soft_wrap=True))


def _list(args: list[str]) -> None:
  from dfkt_jax.commands.show import show_list

  show_list(flags.parse(List, "list", args).what)


@dataclasses.dataclass(frozen=True)
class Quickstart:
  """Distills a digit classifier without its data, and trains three baselines.

  A teacher learns scikit-learn's real 8x8 digits. A student of a quarter of its
  size then learns without the digits, from images of a generator that is
  trained against the teacher. About two minutes on two CPU cores.
  """

  workdir: Path = Path("quickstart")  # rerun with the same one to resume
  seed: int = 0


def _quickstart(args: list[str]) -> None:
  command = flags.parse(Quickstart, "quickstart", args)
  from dfkt_jax.commands import quickstart
  from dfkt_jax.commands.show import show_table

  table, page = quickstart.run(command.workdir, command.seed)
  show_table(table)
  flags.print_plain(f"report: {page}")


def _teacher(args: list[str]) -> None:
  text = (
    "usage: dfkt teacher import FILE --arch NAME [--preset NAME] --out DIR\n"
    "       dfkt teacher train --arch NAME --dataset DATA --out DIR"
  )
  if not args:
    raise UsageError(f"dfkt teacher needs 'import' or 'train'\n{text}")
  flags.print_plain(text)


def _write_data(args: list[str]) -> None:
  from dfkt_jax.commands.data import Write

  flags.print_plain(flags.parse(Write, "data write", args).run())


def _data(args: list[str]) -> None:
  text = "usage: dfkt data write NAME --split SPLIT=DATA [--data-dir DIR]"
  if not args:
    raise UsageError(f"dfkt data needs 'write'\n{text}")
  flags.print_plain(text)


_GROUPS = ("teacher", "data")
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
  "quickstart": _quickstart,
  "teacher": _teacher,
  "teacher import": _import,
  "teacher train": experiments.train,
  "data": _data,
  "data write": _write_data,
  "evaluate": _evaluate,
  "synthesize": experiments.synthesize,
  "distill": experiments.distill,
  "adapt": experiments.adapt,
  "run": experiments.run,
  "export": _export,
  "report": _report,
  "bench": _bench,
  "list": _list,
}
_MULTI_PROCESS = ("teacher train", "synthesize", "distill", "adapt", "run")
