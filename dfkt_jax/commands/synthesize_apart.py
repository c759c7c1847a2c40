"""Images in batches that do not depend on each other, by any processes.

Batch number k is a function of (seed, k) alone, whoever makes it. Process p of
P makes the batches k with k mod P = p on its own devices, without a word to the
others: any of them may die, and a rerun, by one process or by as many as one
likes, makes what is missing. WORKDIR/shards/K has a batch's log and, until its
shard is written, its state; a lock keeps two processes off one batch. Whoever
finds all shards there writes down what can be said of the whole.

A batch is made once its shard is in place and the last line of its log is that
of the finished batch, in this order.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import shutil
import statistics
import time
from typing import Any

import jax
from rich.console import Console

from dfkt_jax import files, metrics, parallel, workdir
from dfkt_jax.commands import batches
from dfkt_jax.commands.batches import Plan
from dfkt_jax.data import shards
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.driver import Pace, RunOptions, drive, stop_signals
from dfkt_jax.errors import DfktError, Preempted
from dfkt_jax.network import Network

WAIT_SECONDS = 1.0  # between two looks at what the others have made


def make(
  config: Any,
  plan: Plan,
  options: RunOptions,
  teacher: Network,
  student: Network | None,
  verifier: Network | None,
) -> dict:
  """Makes this process's batches; the contents of result.json, if all are made.

  `config` is a Synthesize. Otherwise it says how many are missing.
  """
  key = jax.random.key(config.seed)
  init = jax.jit(plan.method.init)
  advance = batches.make_advance(plan, key, teacher, student)
  look = batches.make_look(plan, options, key, teacher, verifier, writes=True)
  name = type(plan.method).__name__

  def make_one(number, stopped):
    stream = transfers.RESTART if number else transfers.INIT
    shards.remove_leftovers(plan.layout, number)
    place = _place(options, number)
    drive(
      dataclasses.replace(options, workdir=place),
      title=f"synthesize {name}, batch {number + 1} of {plan.layout.shards}",
      state=init(transfers.stream(key, stream, number), teacher, student),
      first=number * plan.chunks,
      rounds=(number + 1) * plan.chunks,
      advance=advance,
      observe=lambda state, done: look(state, done, jax.device_get),
      observe_every=plan.chunks,
      images_per_round=plan.chunk * plan.size,
      steps_per_round=plan.chunk,
      stopped=stopped,
    )
    shutil.rmtree(place / "checkpoints", ignore_errors=True)

  process, processes = parallel.place()
  missing = set(range(plan.layout.shards))
  with _stops(options) as stopped:
    while True:
      for number in range(process, plan.layout.shards, processes):
        if number not in missing:
          continue
        with workdir.lock(_place(options, number) / ".lock") as free:
          if free and not _is_made(plan, options, number):
            if stopped(0):
              raise Preempted(
                f"stopped before batch {number + 1} of {plan.layout.shards}:"
                " run the same command again to go on"
              )
            make_one(number, stopped)
      missing = {n for n in missing if not _is_made(plan, options, n)}
      # Processes that met have to end together: JAX waits for all of them.
      if not missing or jax.process_count() == 1:
        break
      if stopped(0):
        raise Preempted(
          f"stopped with {len(missing)} batches of others missing: run the same"
          " command again to go on"
        )
      time.sleep(WAIT_SECONDS)
  if missing:
    return _unfinished(config, plan, len(missing))
  return _finish(config, plan, options)


@contextlib.contextmanager
def _stops(options: RunOptions) -> Iterator[Callable[[int], bool]]:
  """`stop_signals` of this process, or of any where they have met.

  Those that met have to end together, and what one of them is told reaches the
  others by a file, WORKDIR/stop, for they have no round in common.
  """
  with stop_signals(alone=True) as told:
    if jax.process_count() == 1:
      yield told
      return
    mark = options.workdir / "stop"
    if jax.process_index() == 0:
      mark.unlink(missing_ok=True)
    parallel.wait("the mark of the last stop is gone")

    def stopped(done):
      if told(done):
        mark.touch()
      return mark.exists()

    yield stopped


def _place(options: RunOptions, number: int) -> Path:
  return options.workdir / "shards" / f"{number:05d}"


def _is_made(plan, options, number) -> bool:
  if not plan.layout.path(number).exists():
    return False
  rows = metrics.read_metrics(_place(options, number))
  return bool(rows) and "images" in rows[-1]


def _unfinished(config, plan, missing) -> dict:
  Console(soft_wrap=True).print(
    f"{missing} of {plan.layout.shards} shards are not there yet and are left"
    " to the other processes: when those have ended, run the same command"
    " again to make any that are still missing",
    markup=False,
    highlight=False,
  )
  return {
    "command": "synthesize",
    "method": type(config.method).__name__,
    "seed": config.seed,
    "shards": plan.layout.shards,
    "shards_missing": missing,
  }


def _finish(config, plan, options) -> dict:
  """Several processes may do this at once: they write the same."""
  for number, expected in enumerate(plan.counts):
    found = shards.count(plan.layout, number)
    if found != expected:
      raise DfktError(
        f"{plan.layout.path(number)} holds {found} images: expected {expected};"
        " remove it and run the same command again to make it anew"
      )
  logs = [
    metrics.read_metrics(_place(options, number))
    for number in range(plan.layout.shards)
  ]
  rows = _joined(logs)
  lines = [json.dumps(files.plain(row, str)) for row in rows]
  result = batches.result(config, plan, rows, _pace(plan, logs))
  files.write_atomic(
    options.workdir / metrics.FILE_NAME, "".join(f"{line}\n" for line in lines)
  )
  shards.finish(plan.layout, plan.counts)
  files.write_json(options.workdir / "result.json", result)
  return result


def _joined(logs) -> list[dict[str, Any]]:
  """One log; its clock goes on from batch to batch."""
  rows, before = [], 0.0
  for log in logs:
    rows += [{**row, "wall": round(before + row["wall"], 3)} for row in log]
    before += log[-1]["wall"]
  return rows


def _pace(plan, logs) -> Pace:
  """Over all batches, whoever made them.

  Of gaps between lines the median, for before a first line, and where a batch
  was taken up again, there is compilation in them.
  """
  paces = [
    (after["step"] - before["step"]) / (after["wall"] - before["wall"])
    for log in logs
    for before, after in itertools.pairwise(log)
    if after["wall"] > before["wall"]
  ]
  return Pace(
    wall_seconds=sum(log[-1]["wall"] for log in logs),
    rounds_per_second=statistics.median(paces or [0.0]) / plan.chunk,
  )
