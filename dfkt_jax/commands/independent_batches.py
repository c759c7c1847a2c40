"""Independent batches of images, made by any number of processes.

Batch number k is a function of (seed, k) alone, whoever makes it. Process p of
P makes the batches k with k mod P = p on its own devices, without any message
to the others. Any process may die; a rerun, by any number of processes, makes
what is missing. WORKDIR/shards/K has a batch's log and, until its shard is
written, its state; a lock gives a batch to one process only. A process that
finds all shards in place writes the result of the whole.

A batch is complete once its shard is in place and the last line of its log is
that of the finished batch, in this order.
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

from dfkt_jax import files
from dfkt_jax.commands import synthesis_plan
from dfkt_jax.data import shards
from dfkt_jax.devices.processes import barrier, process_rank
from dfkt_jax.errors import DfktError, Preempted
from dfkt_jax.rounds import distil
from dfkt_jax.runs import metrics, workdir
from dfkt_jax.runs.driver import (
  Loop,
  RunOptions,
  Throughput,
  drive,
  stop_signals,
)
from dfkt_jax.runs.experiment import Finished

WAIT_SECONDS = 1.0  # between two checks of the other processes' shards


def make(inputs: Any) -> Finished:
  """Make this process's batches.

  Args:
    inputs: those of `synthesize`.

  Returns:
    The result of all batches, or, incomplete, the number of missing ones.

  Raises:
    Preempted: a stop signal; what is made is saved.
    DfktError: a shard holds another number of images than it should.
  """
  config, plan, options, teacher, student, verifier, _ = inputs
  key = jax.random.key(config.seed)
  init = jax.jit(plan.init)
  advance = synthesis_plan.make_advance(plan, key, teacher, student)
  check = synthesis_plan.make_check(
    plan, options, key, teacher, verifier, writes=True
  )
  name = type(plan.method).__name__

  def make_one(number, stopped):
    stream = distil.RESTART if number else distil.INIT
    shards.remove_leftovers(plan.layout, number)
    place = _place(options, number)
    loop = Loop(
      title=f"synthesize {name}, batch {number + 1} of {plan.layout.shards}",
      state=init(
        distil.stream_key(key, stream, number),
        teacher,
        student,
        plan.assets,
        number * plan.steps,
      ),
      first=number * plan.chunks,
      rounds=(number + 1) * plan.chunks,
      advance=advance,
      observe=lambda state, done: check(state, done, jax.device_get),
      observe_every=plan.chunks,
      images_per_round=plan.chunk * plan.size,
      steps_per_round=plan.chunk,
    )
    drive(dataclasses.replace(options, workdir=place), loop, stopped)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)

  process, processes = process_rank()
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
    return Finished(_unfinished(config, plan, len(missing)), complete=False)
  return Finished(_finish(config, plan, options))


@contextlib.contextmanager
def _stops(options: RunOptions) -> Iterator[Callable[[int], bool]]:
  """Yield `stop_signals` of this process, or of all processes that have met.

  Processes that met have to end together. They have no round in common, so a
  signal to one of them reaches the others by a file, WORKDIR/stop.
  """
  with stop_signals(alone=True) as signalled:
    if jax.process_count() == 1:
      yield signalled
      return
    mark = options.workdir / "stop"
    if jax.process_index() == 0:
      mark.unlink(missing_ok=True)
    barrier("the file of the last stop is removed")

    def stopped(done):
      if signalled(done):
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
  """Write the whole; several processes may do so, and write the same."""
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
  lines = [json.dumps(files.to_json(row, str)) for row in rows]
  observed = [row for row in rows if "images" in row]
  result = synthesis_plan.result(
    config, plan, observed, _throughput(plan, logs)
  )
  files.write_atomic(
    options.workdir / metrics.FILE_NAME, "".join(f"{line}\n" for line in lines)
  )
  shards.finish(plan.layout, plan.counts)
  return result


def _joined(logs) -> list[dict[str, Any]]:
  """Join the logs to one, whose clock goes on from batch to batch."""
  rows, before = [], 0.0
  for log in logs:
    rows += [{**row, "wall": round(before + row["wall"], 3)} for row in log]
    before += log[-1]["wall"]
  return rows


def _throughput(plan, logs) -> Throughput:
  """Measure the speed over all batches, whoever made them.

  It is the median over the gaps between lines of a log: some gaps have a
  compilation in them, where a batch began or was resumed.
  """
  paces = [
    (after["step"] - before["step"]) / (after["wall"] - before["wall"])
    for log in logs
    for before, after in itertools.pairwise(log)
    if after["wall"] > before["wall"]
  ]
  return Throughput(
    wall_seconds=sum(log[-1]["wall"] for log in logs),
    rounds_per_second=statistics.median(paces or [0.0]) / plan.chunk,
  )
