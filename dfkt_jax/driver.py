"""The loop around rounds: logging, checkpoints, resuming and stopping."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
import signal
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from dfkt_jax import parallel
from dfkt_jax.checkpoint import Checkpoints
from dfkt_jax.data.stream import Stream
from dfkt_jax.errors import DfktError, Preempted
from dfkt_jax.local_checkpoint import LocalCheckpoints
from dfkt_jax.metrics import MetricsWriter
from dfkt_jax.progress import Progress

LOG_LINES = 500  # of a run in metrics.jsonl, at most about so many


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """How a run is carried out; the result does not depend on it.

  Except that another number of devices adds numbers up in another order.
  """

  workdir: Path  # folder of the run; rerun the same command to resume
  # data=N or data=N,model=M devices (default: all; a CPU is split into two)
  mesh: str | None = None
  checkpoint_seconds: float = 60.0  # save the state this often
  tensorboard: bool = False  # also write WORKDIR/tensorboard


@dataclasses.dataclass(frozen=True)
class Pace:
  """What a finished loop tells about itself."""

  wall_seconds: float  # over all resumptions
  rounds_per_second: float  # of this process, compilation left out


def drive(
  options: RunOptions,
  title: str,
  state: Any,
  rounds: int,
  advance: Callable[[Any, int], tuple[Any, Mapping[str, Any]]],
  observe: Callable[[Any, int], Mapping[str, float]],
  observe_every: int,
  images_per_round: int,
  steps_per_round: int = 1,
  stream: Stream | None = None,
  first: int = 0,
  stopped: Callable[[int], bool] | None = None,
) -> tuple[Any, Pace]:
  """Runs rounds first .. rounds - 1, resuming from the newest checkpoint.

  Args:
    state: the state before the first round; also the shape of what is restored.
    advance: (state, index) -> (state, infos), infos a mapping from a name to a
      NamedTuple of f32[steps].
    observe: (state, rounds done) -> metrics; called every `observe_every`
      rounds and after the last one.
    steps_per_round: what the log counts a round as.
    stream: of what `advance` takes batches; it resumes where it stood.
    stopped: of `stop_signals(alone=True)`, for a process that does this by
      itself, whatever the others do.

  Raises:
    DfktError: a loss term is not finite; the last checkpoint is from before.
    Preempted: SIGTERM or, to a run of one process, Ctrl-C; the state is saved.
  """
  alone = stopped is not None
  log_every = max(1, rounds // LOG_LINES)
  with contextlib.ExitStack() as stack:
    kind = LocalCheckpoints if alone else Checkpoints
    checkpoints = stack.enter_context(kind(options.workdir / "checkpoints"))
    done, wall = checkpoints.latest() or first, 0.0
    if done > first:
      state, meta = checkpoints.restore(done, state)
      wall = meta["wall_seconds"]
      if stream is not None:
        stream.restore(meta["stream"])
    stopped, begun = stopped or stack.enter_context(stop_signals()), done
    writer = stack.enter_context(
      MetricsWriter(
        options.workdir,
        tensorboard=options.tensorboard,
        resume_step=done * steps_per_round if done > first else -1,
        alone=alone,
      )
    )
    progress = stack.enter_context(
      Progress(
        title, total=rounds * steps_per_round, initial=done * steps_per_round
      )
    )
    if done > first:
      progress.say(
        f"resuming after step {done * steps_per_round} of"
        f" {rounds * steps_per_round}"
      )
    clock = _Clock(wall)
    saved_at = time.monotonic()
    pending: tuple[int, Any] | None = None

    for index in range(done, rounds):
      state, infos = advance(state, index)
      # Reading the round before this one does not stall the device.
      _check_finite(pending)
      pending = (index, infos)
      done = index + 1
      clock.tick(infos)
      observing = done % observe_every == 0 or done == rounds
      logging = observing or index == first or done % log_every == 0
      stop = stopped(done - begun)
      due = time.monotonic() - saved_at > options.checkpoint_seconds
      if jax.process_count() > 1 and not alone:
        # All have to save at the same round; asking costs a wait for it.
        due = bool(logging and parallel.of_first_process(np.int32(due)))
      if logging or due or stop:
        _check_finite(pending)
      if observing or due or stop:
        # A loss is that of the weights before its step: look at those after.
        _check_state(state, done * steps_per_round)
      if logging:
        losses = _means(infos)
        metrics = {**losses, **(observe(state, done) if observing else {})}
        writer.write(done * steps_per_round, metrics)
        progress.update(
          done * steps_per_round,
          _headline(infos, metrics),
          images_per_second=clock.pace * images_per_round,
        )
      if due or stop or done == rounds:
        meta: dict[str, Any] = {"wall_seconds": clock.wall}
        if stream is not None:
          meta["stream"] = stream.state
        checkpoints.save(done, state, meta)
        saved_at = time.monotonic()
      if stop and done < rounds:
        raise Preempted(
          f"stopped after step {done * steps_per_round} of"
          f" {rounds * steps_per_round} and saved: run the same command again"
          " to go on"
        )
  if not alone:
    # What comes next may read what the first process has written.
    parallel.wait("the log is written")
  return state, Pace(clock.wall, clock.pace)


@jax.jit
def _state_is_finite(state):
  leaves = [
    leaf
    for leaf in jax.tree.leaves(state)
    # A scalar may be infinite, such as the best loss before the first one.
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim
  ]
  checks = [jnp.isfinite(leaf).all() for leaf in leaves]
  return jnp.stack([jnp.bool_(True), *checks]).all()


def _check_state(state, step) -> None:
  if not _state_is_finite(state):
    raise DfktError(
      f"the weights or images are not finite after step {step}: the checkpoints"
      " are from before that; try a lower learning rate in a new --workdir"
    )


class _Clock:
  """Wall time over resumptions, and rounds a second after compilation."""

  def __init__(self, wall: float):
    self._start = time.monotonic() - wall
    self._first: float | None = None
    self._count = 0

  def tick(self, infos) -> None:
    if self._first is None:
      jax.block_until_ready(infos)
      self._first = time.monotonic()
    else:
      self._count += 1

  @property
  def wall(self) -> float:
    return time.monotonic() - self._start

  @property
  def pace(self) -> float:
    if not self._count or self._first is None:
      return 0.0
    return self._count / (time.monotonic() - self._first)


def _means(infos) -> dict[str, float]:
  """One number a loss term: its mean over the steps of the round."""
  return {
    f"{group}/{term}": float(np.mean(values))
    for group, info in jax.device_get(dict(infos)).items()
    for term, values in info._asdict().items()
  }


def _headline(infos, metrics) -> dict[str, float]:
  """The first term of each group, and what was observed."""
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
    # The sum is broken by whichever term is: at the same step, name the term.
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
  """stopped(rounds since then): whether to stop, the same on every process.

  SIGTERM and the first Ctrl-C ask for it. With several processes only SIGTERM
  does: JAX listens for it, and names a round that none of them has passed; the
  first one, if it came before any, so rounds are to count from 1 and by 1.
  `alone`, a process stops by itself, as if there were no others.
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
