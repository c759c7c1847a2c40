"""The loop around rounds: logging, checkpoints, resuming and stopping."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
import signal
import threading
import time
from typing import Annotated, Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from dfkt_jax import files
from dfkt_jax.contracts import NonNegative
from dfkt_jax.data.stream import Stream
from dfkt_jax.devices.processes import barrier, broadcast
from dfkt_jax.errors import DfktError, Preempted
from dfkt_jax.runs.checkpoints import Checkpoints
from dfkt_jax.runs.flat_state import flatten
from dfkt_jax.runs.local_checkpoints import LocalCheckpoints
from dfkt_jax.runs.metrics import MetricsWriter
from dfkt_jax.runs.progress import Progress

LOG_LINES = 500  # of a run in metrics.jsonl, about


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """Options of a run that its result does not depend on.

  One exception: another number of devices adds numbers up in another order.
  """

  workdir: Path  # folder of the run; rerun the same command to resume
  # data=N or data=N,model=M devices (default: all; a CPU is split into two)
  mesh: str | None = None
  # save the state this often
  checkpoint_seconds: Annotated[float, NonNegative] = 60.0
  tensorboard: bool = False  # also write WORKDIR/tensorboard


@dataclasses.dataclass(frozen=True)
class Throughput:
  """The speed of a finished loop."""

  wall_seconds: float  # over all resumptions
  rounds_per_second: float  # of this process, compilation left out


@dataclasses.dataclass(frozen=True)
class Loop:
  """Rounds `first` to `rounds` - 1 of a run, for `drive`."""

  title: str
  state: Any  # before the first round; also the shape of what is restored
  rounds: int
  # (state, index) -> (state, infos): a mapping from a name to a NamedTuple of
  # f32[steps].
  advance: Callable[[Any, int], tuple[Any, Mapping[str, Any]]]
  # (state, rounds done) -> metrics
  observe: Callable[[Any, int], Mapping[str, float]]
  observe_every: int  # rounds; it is also called after the last one
  images_per_round: int
  steps_per_round: int = 1  # what the log counts a round as
  stream: Stream | None = None  # of batches for `advance`; it resumes too
  first: int = 0


class Outcome(NamedTuple):
  """The final state, speed and history of a loop."""

  state: Any
  throughput: Throughput
  # The metrics of every observed round, resumed runs included: the means of the
  # infos as "group/term", what `observe` returned, and "step".
  history: list[dict[str, float]]


def drive(
  options: RunOptions,
  loop: Loop,
  stopped: Callable[[int], bool] | None = None,
) -> Outcome:
  """Run a loop, resuming from the newest checkpoint.

  Args:
    stopped: the function of `stop_signals(alone=True)`, for a process that
      does this by itself, independently of the others.

  Raises:
    DfktError: a loss term is not finite; the last checkpoint is from before.
    Preempted: SIGTERM or, to a run of one process, Ctrl-C; the state is saved.
  """
  alone = stopped is not None
  state, rounds, first = loop.state, loop.rounds, loop.first
  per_round = loop.steps_per_round
  log_every = max(1, rounds // LOG_LINES)
  history: list[dict[str, float]] = []
  with contextlib.ExitStack() as stack:
    kind = LocalCheckpoints if alone else Checkpoints
    checkpoints = stack.enter_context(kind(options.workdir / "checkpoints"))
    done, wall = checkpoints.latest() or first, 0.0
    if done > first:
      state, meta = checkpoints.restore(done, state)
      wall, history = meta["wall_seconds"], meta["history"]
      if loop.stream is not None:
        loop.stream.restore(meta["stream"])
    stopped, begun = stopped or stack.enter_context(stop_signals()), done
    writer = stack.enter_context(
      MetricsWriter(
        options.workdir,
        tensorboard=options.tensorboard,
        resume_step=done * per_round if done > first else -1,
        alone=alone,
      )
    )
    progress = stack.enter_context(
      Progress(loop.title, total=rounds * per_round, initial=done * per_round)
    )
    if done > first:
      progress.say(
        f"resuming after step {done * per_round} of {rounds * per_round}"
      )
    clock = _Clock(wall)
    saved_at = time.monotonic()
    pending: tuple[int, Any] | None = None

    for index in range(done, rounds):
      state, infos = loop.advance(state, index)
      # Reading the round before this one does not stall the device.
      _check_finite(pending)
      pending = (index, infos)
      done = index + 1
      clock.tick(infos)
      observing = done % loop.observe_every == 0 or done == rounds
      logging = observing or index == first or done % log_every == 0
      stop = stopped(done - begun)
      due = time.monotonic() - saved_at > options.checkpoint_seconds
      if jax.process_count() > 1 and not alone:
        # All have to save at the same round; asking costs a wait for it.
        due = bool(logging and broadcast(np.int32(due)))
      if logging or due or stop:
        _check_finite(pending)
      if observing or due or stop:
        # A loss belongs to the weights before its step: check those after it.
        _check_state(state, done * per_round)
      if logging:
        losses = _means(infos)
        observed = loop.observe(state, done) if observing else {}
        metrics = {**losses, **observed}
        writer.write(done * per_round, metrics)
        progress.update(
          done * per_round,
          _headline(infos, metrics),
          images_per_second=clock.rounds_per_second * loop.images_per_round,
        )
        if observing:
          history.append({"step": done * per_round, **metrics})
      if due or stop or done == rounds:
        meta: dict[str, Any] = {
          "wall_seconds": clock.wall,
          "history": files.to_json(history),
        }
        if loop.stream is not None:
          meta["stream"] = loop.stream.state
        checkpoints.save(done, state, meta)
        saved_at = time.monotonic()
      if stop and done < rounds:
        raise Preempted(
          f"stopped after step {done * per_round} of {rounds * per_round} and"
          " saved: run the same command again to go on"
        )
  if not alone:
    # What comes next may read what the first process has written.
    barrier("the log is written")
  throughput = Throughput(clock.wall, clock.rounds_per_second)
  return Outcome(state, throughput, history)


@jax.jit
def _which_are_finite(state):
  return {
    name: jnp.isfinite(leaf).all()
    for name, leaf in flatten(state).items()
    # A scalar may be infinite, such as the best loss before the first one.
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim
  }


def _check_state(state, step) -> None:
  found = jax.device_get(_which_are_finite(state))
  broken = [name for name, finite in found.items() if not finite]
  if broken:
    raise DfktError(
      f"{broken[0]} is not finite after step {step}, nor are"
      f" {len(broken) - 1} other arrays of the state: the checkpoints are from"
      " before that; try a lower learning rate in a new --workdir"
    )


class _Clock:
  """Wall time over resumptions, and rounds a second after compilation."""

  def __init__(self, wall: float):
    self._start = time.monotonic() - wall
    self._first: float | None = None
    self._count = 0

  def tick(self, infos) -> None:
    """Count a round; the first one is compilation."""
    if self._first is None:
      jax.block_until_ready(infos)
      self._first = time.monotonic()
    else:
      self._count += 1

  @property
  def wall(self) -> float:
    """Seconds since the start of the run, pauses left out."""
    return time.monotonic() - self._start

  @property
  def rounds_per_second(self) -> float:
    """Rounds a second; 0 before the second round."""
    if not self._count or self._first is None:
      return 0.0
    return self._count / (time.monotonic() - self._first)


def _means(infos) -> dict[str, float]:
  """Average every loss term over the steps of the round."""
  return {
    f"{group}/{term}": float(np.mean(values))
    for group, info in jax.device_get(dict(infos)).items()
    for term, values in info._asdict().items()
  }


def _headline(infos, metrics) -> dict[str, float]:
  """Select the first term of each group, and what was observed."""
  first = {f"{group}/{info._fields[0]}" for group, info in infos.items()}
  return {
    name: value
    for name, value in metrics.items()
    if name in first or name.split("/")[0] not in infos
  }


def _check_finite(pending) -> None:
  if pending is None:
    return
  index, infos = pending
  for group, info in jax.device_get(dict(infos)).items():
    # A broken term breaks the sum at the same step: name the term.
    broken = [
      (int(np.argmin(np.isfinite(values))), term == "loss", place, term)
      for place, (term, values) in enumerate(info._asdict().items())
      if not np.isfinite(values).all()
    ]
    if broken:
      step, _, _, term = min(broken)
      raise DfktError(
        f"{group}/{term} was the first loss term to stop being finite, at step"
        f" {step} of round {index + 1}: the checkpoints are from before that;"
        " try a lower learning rate or weight in a new --workdir"
      )


@contextlib.contextmanager
def stop_signals(alone: bool = False) -> Iterator[Callable[[int], bool]]:
  """Yield stopped(rounds since then), which returns whether to stop.

  All processes get the same answer. SIGTERM and the first Ctrl-C ask for a
  stop. With several processes only SIGTERM does: JAX listens for it and names a
  round that no process has passed yet. That is the first round if the signal
  came before any, so rounds have to be counted from 1 and by 1.

  Args:
    alone: stop this process by itself, as if there were no others.
  """
  if jax.process_count() > 1 and not alone:
    yield multihost_utils.reached_preemption_sync_point
    return
  event = threading.Event()
  stopped = lambda done: event.is_set()
  if threading.current_thread() is not threading.main_thread():
    yield stopped
    return

  def handle(signum, frame):
    if event.is_set() and signum == signal.SIGINT:
      raise KeyboardInterrupt
    event.set()

  names = (signal.SIGTERM, signal.SIGINT)
  old = {name: signal.signal(name, handle) for name in names}
  try:
    yield stopped
  finally:
    for name, handler in old.items():
      signal.signal(name, handler)
