"""Run a grid of settings of named experiments, one process a run.

COMMAND  python launch/sweep.py experiments/digits.py:dfq --seeds 0 1 2 \
           --grid learner.lr=0.05,0.1 --jobs 2 --workdir runs/sweep

Every experiment is run for every seed and every combination of --grid's values,
each as `dfkt run` with a workdir of its own in --workdir, at most --jobs at the
same time. The same command resumes a sweep that was stopped: finished runs are
not repeated. A run that fails is reported and does not stop the others.

--each VARIABLE=A,B,... gives each of the simultaneous runs its own value of an
environment variable: CUDA_VISIBLE_DEVICES=0,1,2,3 is one GPU a run. Runs that
share a CPU use it as one device each (JAX_NUM_CPU_DEVICES=1, unless that or
--mesh is given); a single run uses it as `dfkt run` does. --part I/N takes
every N-th run from the I-th on, for N machines or the tasks of a job array that
share one --workdir. At the end a table of all finished runs is printed, with a
row for each setting over its seeds; --workdir/table.csv has a row for each run.

SIGTERM and Ctrl-C are forwarded: runs save and stop, and none is started;
another Ctrl-C kills them. If this script is killed, they save and stop. Exit
code: 0, 1 if runs failed, 75 if runs are unfinished.
"""

# ruff: noqa: T201 (a script prints its output)

import argparse
from collections.abc import Iterator, Sequence
import csv
import ctypes
import dataclasses
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time

PREEMPTED = 75
CPU_DEVICES = "JAX_NUM_CPU_DEVICES"
LONGEST_NAME = 200
FIGURES = ("accuracy_last", "accuracy_best", "agreement", "wall_seconds")


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of the grid."""

  experiment: str  # MODULE:NAME
  settings: tuple[str, ...]  # FIELD=VALUE
  seed: int
  workdir: Path

  def command(self, words: Sequence[str]) -> list[str]:
    """Return the command, with more words for `dfkt run`."""
    chosen = ["--set", *self.settings] if self.settings else []
    return [
      *(sys.executable, "-m", "dfkt_jax", "run", self.experiment),
      *("--workdir", str(self.workdir), "--seed", str(self.seed)),
      *chosen,
      *words,
    ]

  @property
  def log(self) -> Path:
    """The file with the output of the run, beside its workdir."""
    return self.workdir.with_name(f"{self.workdir.name}.log")

  def result(self) -> dict | None:
    """Return the result, or None if the run is unfinished."""
    path = self.workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def main(argv: Sequence[str] | None = None) -> int:
  args = _parse(argv)
  every = list(_runs(args))
  if len({run.workdir for run in every}) < len(every):
    sys.exit(
      "sweep.py: two of the runs would share a folder: name every value of"
      " --grid once, and experiments by paths that differ in more than / and -"
    )
  part, parts = args.part
  own = every[part - 1 :: parts]
  if args.dry_run:
    for run in own:
      done = "# finished: " if run.result() else ""
      print(done + shlex.join(run.command(args.words)))
    return 0
  args.workdir.mkdir(parents=True, exist_ok=True)
  failed = _carry_out(args, own)
  _report(args, every)
  for run in failed:
    print(f"failed: {run.workdir.name}: {_last_line(run.log)} ({run.log})")
  if failed:
    return 1
  return PREEMPTED if any(run.result() is None for run in own) else 0


def _parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("experiments", nargs="+", help="MODULE:NAME, as for dfkt run")
  add("--workdir", type=Path, required=True, help="folder of all runs")
  add("--seeds", type=int, nargs="+", default=[0])
  add(
    "--grid",
    action="append",
    default=[],
    type=_axis,
    help="FIELD=VALUE,VALUE,...; may be given several times",
  )
  add(
    "--jobs",
    type=int,
    help="simultaneous runs (default: 1, or the number of --each's values)",
  )
  add("--each", type=_axis, help="VARIABLE=VALUE,VALUE,..., one for each job")
  add("--part", type=_part, default=(1, 1), help="I/N, with I from 1")
  add("--dry-run", action="store_true", help="print the commands only")
  add("--flags", default="", help="more words for dfkt run, quoted as one")
  args = parser.parse_args(argv)
  slots = len(args.each[1]) if args.each else None
  args.jobs = slots or 1 if args.jobs is None else args.jobs
  if args.jobs < 1:
    parser.error(f"--jobs {args.jobs}: give 1 or more")
  if slots and args.jobs > slots:
    parser.error(f"--jobs {args.jobs}: --each has {slots} values, one a job")
  args.words = shlex.split(args.flags)
  for flag in ("--set", "--seed", "--workdir"):
    if any(word.split("=")[0] == flag for word in args.words):
      parser.error(f"--flags has {flag}, which each run sets by itself")
  return args


def _axis(text):
  """FIELD=A,B -> (FIELD, [A, B]); [1,2],[3] are two values."""
  name, equals, values = text.partition("=")
  if not (name and equals and values):
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE,VALUE,...")
  parts, depth = [""], 0
  for letter in values:
    depth += (letter in "[(") - (letter in "])")
    if letter == "," and not depth:
      parts.append("")
    else:
      parts[-1] += letter
  return name, parts


def _part(text):
  index, _, count = text.partition("/")
  if not (index.isdigit() and count.isdigit()):
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/4")
  if not 1 <= int(index) <= int(count):
    raise argparse.ArgumentTypeError(f"{text!r}: give an I from 1 to N")
  return int(index), int(count)


def _runs(args) -> Iterator[Run]:
  axes = [[f"{name}={value}" for value in values] for name, values in args.grid]
  for experiment in args.experiments:
    for settings in itertools.product(*axes):
      for seed in dict.fromkeys(args.seeds):
        where = experiment.lstrip("./").replace(":", ".")
        name = "_".join([where, *settings, f"seed={seed}"])
        yield Run(experiment, settings, seed, args.workdir / _safe(name))


def _safe(name):
  """Return a name for a folder, which may have at most 255 bytes."""
  safe = re.sub(r"[^\w.,=+-]", "-", name)
  if len(safe.encode()) <= LONGEST_NAME and safe == name.replace("/", "-"):
    return safe
  digest = hashlib.sha256(name.encode()).hexdigest()[:8]
  return f"{safe.encode()[:LONGEST_NAME].decode(errors='ignore')}_{digest}"


def _carry_out(args, runs) -> list[Run]:
  """Carry out the unfinished runs; return those that failed."""
  waiting = [run for run in runs if run.result() is None]
  print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished")
  going: dict[int, tuple[Run, subprocess.Popen]] = {}
  failed, stopped = [], []

  def stop(number, _):
    again = signal.SIGINT in stopped
    stopped.append(number)
    for _, process in going.values():
      process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
  while going or (waiting and not stopped):
    while waiting and not stopped and len(going) < args.jobs:
      slot = next(slot for slot in range(args.jobs) if slot not in going)
      run = waiting.pop(0)
      going[slot] = run, _start(args, run, slot)
      if stopped:  # in the meantime
        going[slot][1].send_signal(signal.SIGTERM)
      print(f"started {run.workdir.name}", flush=True)
    for slot, (run, process) in list(going.items()):
      code = process.poll()
      if code is None:
        continue
      del going[slot]
      outcome = {0: "finished", PREEMPTED: "stopped"}.get(code, "failed")
      if stopped and code < 0:  # signalled before it had a handler
        outcome = "stopped"
      print(f"{outcome} {run.workdir.name}", flush=True)
      if outcome == "failed":
        failed.append(run)
    time.sleep(0.1)
  return failed


def _own(args, slot) -> dict[str, str]:
  """Return the environment variables of one run."""
  name, values = args.each or ("", [])
  own = {name: values[slot]} if values else {}
  if args.jobs > 1 and not any(w.startswith("--mesh") for w in args.words):
    own.setdefault(CPU_DEVICES, os.environ.get(CPU_DEVICES, "1"))
  return own


def _start(args, run, slot):
  # Beside the workdir, which must not exist before `dfkt run`.
  with open(run.log, "a") as log:
    return subprocess.Popen(
      run.command(args.words),
      env={**os.environ, **_own(args, slot)},
      stdout=log,
      stderr=subprocess.STDOUT,
      # Ctrl-C reaches a whole group; each process must be signalled only once.
      start_new_session=True,
      preexec_fn=_stop_with_parent,
    )


def _stop_with_parent():
  """Ask Linux to send this process a SIGTERM when its parent dies."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _report(args, runs):
  rows = [(run, result) for run in runs if (result := run.result())]
  if not rows:
    return
  figures = [f for f in FIGURES if any(f in result for _, result in rows)]
  fields = [name for name, _ in args.grid]
  text = io.StringIO()
  table = csv.writer(text)
  table.writerow(["experiment", *fields, "seed", *figures])
  for run, result in rows:
    values = [setting.partition("=")[2] for setting in run.settings]
    measured = [result.get(figure) for figure in figures]
    table.writerow([run.experiment, *values, run.seed, *measured])
  beside = args.workdir / f".table.csv.{os.getpid()}"
  beside.write_text(text.getvalue())
  os.replace(beside, args.workdir / "table.csv")
  lines = [["experiment", *fields, "seeds", *figures]]
  groups: dict[tuple, list] = {}
  for run, result in rows:
    groups.setdefault((run.experiment, run.settings), []).append((run, result))
  for (experiment, settings), members in groups.items():
    lines.append(
      [
        experiment,
        *(setting.partition("=")[2] for setting in settings),
        " ".join(str(run.seed) for run, _ in members),
        *(
          _spread([r.get(figure) for _, r in members], figure)
          for figure in figures
        ),
      ]
    )
  widths = [max(map(len, column)) for column in zip(*lines)]
  print("mean, and with several seeds (smallest..largest):")
  for line in lines:
    print("  ".join(word.ljust(width) for word, width in zip(line, widths)))


def _spread(values, figure):
  values = [value for value in values if isinstance(value, int | float)]
  if not values:
    return "-"
  share = figure != "wall_seconds"
  show = lambda value: f"{value:.2%}" if share else f"{value:.0f}"
  mean = show(statistics.mean(values))
  if len(values) == 1:
    return mean
  return f"{mean} ({show(min(values))}..{show(max(values))})"


def _last_line(path):
  lines = path.read_text(errors="replace").splitlines() if path.exists() else []
  return next((line for line in reversed(lines) if line.strip()), "no output")


if __name__ == "__main__":
  sys.exit(main())
