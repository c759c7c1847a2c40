"""The loop around rounds, on rounds that cost nothing."""

import os
import signal
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.data.stream import Stream
from dfkt_jax.errors import DfktError, Preempted
from dfkt_jax.runs.driver import Loop, RunOptions, drive
from dfkt_jax.runs.metrics import read_metrics


class Info(NamedTuple):
  loss: np.ndarray
  first: np.ndarray
  second: np.ndarray


def go(workdir, rounds=10, broken=None, stop_at=None, observe_every=4):
  seen = []

  def advance(state, index):
    seen.append(index)
    if index == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    value = np.array([index, index + 0.5])
    info = Info(value, value, value)
    if broken is not None and index == broken[0]:
      bad = value.copy()
      bad[broken[2]] = np.nan
      info = info._replace(loss=bad, **{broken[1]: bad})
    return state + 1, {"synthesis": info}

  def observe(state, done):
    return {"eval/accuracy": float(state)}

  options = RunOptions(workdir, checkpoint_seconds=0.0)
  loop = Loop(
    *("test", jnp.int32(0), rounds, advance, observe, observe_every, 1)
  )
  outcome = drive(options, loop)
  return int(outcome.state), seen, outcome.history


def lines(workdir):
  return [
    {key: value for key, value in row.items() if key != "wall"}
    for row in read_metrics(workdir)
  ]


def test_every_round_once_and_the_last_one_observed(tmp_path):
  state, seen, _ = go(tmp_path)
  assert state == 10
  assert seen == list(range(10))
  rows = lines(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, 11))
  observed = [row["step"] for row in rows if "eval/accuracy" in row]
  assert observed == [4, 8, 10]
  assert rows[2]["synthesis/loss"] == 2.25


def test_sigterm_saves_and_a_rerun_goes_on(tmp_path):
  go(tmp_path / "whole")
  with pytest.raises(Preempted, match="same command"):
    go(tmp_path / "half", stop_at=5)
  state, seen, _ = go(tmp_path / "half")
  assert state == 10
  assert seen == [6, 7, 8, 9]
  assert lines(tmp_path / "half") == lines(tmp_path / "whole")


def test_the_history_is_that_of_the_whole_run(tmp_path):
  *_, whole = go(tmp_path / "whole")
  with pytest.raises(Preempted):
    go(tmp_path / "half", stop_at=5)
  *_, resumed = go(tmp_path / "half")
  assert [row["step"] for row in whole] == [4, 8, 10]
  assert [row["eval/accuracy"] for row in whole] == [4.0, 8.0, 10.0]
  assert resumed == whole
  # A rerun of a finished loop has it too, out of the last checkpoint.
  assert go(tmp_path / "half")[2] == whole


def test_signal_handlers_are_put_back(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  go(tmp_path)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_stops_and_names_the_first_term(tmp_path):
  with pytest.raises(DfktError, match="synthesis/second .* step 1 of round 7"):
    go(tmp_path, broken=(6, "second", 1))
  state, seen, _ = go(tmp_path)
  assert seen[0] <= 6
  assert state == 10


def test_a_finished_loop_runs_no_round_again(tmp_path):
  go(tmp_path)
  state, seen, _ = go(tmp_path)
  assert (state, seen) == (10, [])


def test_a_stream_resumes_on_the_very_next_batch(tmp_path):
  numbers = np.arange(12)
  taken = []

  def go_on(workdir, stop_at=None):
    with Stream(numbers, 3, seed=7) as stream:

      def advance(state, index):
        if index == stop_at:
          os.kill(os.getpid(), signal.SIGTERM)
        taken.append(next(stream).tolist())
        loss = np.zeros(1)
        return state + 1, {"train": Info(loss, loss, loss)}

      options = RunOptions(workdir, checkpoint_seconds=1e9)
      observe = lambda state, done: {}
      loop = Loop(
        *("test", jnp.int32(0), 9, advance, observe, 100, 1), stream=stream
      )
      drive(options, loop)

  go_on(tmp_path / "whole")
  whole, taken = taken, []
  with pytest.raises(Preempted):
    go_on(tmp_path / "half", stop_at=3)
  go_on(tmp_path / "half")
  assert taken == whole
