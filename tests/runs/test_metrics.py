"""metrics.jsonl is valid JSON, even after a kill."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.runs.metrics import MetricsWriter, read_metrics


def _refuse(token):
  raise AssertionError(f"{token} is not JSON")


def _lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(s, parse_constant=_refuse) for s in text.splitlines()]


def _write(workdir, steps, **kwargs):
  with MetricsWriter(workdir, **kwargs) as writer:
    for step in steps:
      writer.write(step, {"distill/kl": step / 2})


def test_a_line_is_flushed_when_it_is_written(tmp_path):
  clock = iter([10.0, 10.5]).__next__
  writer = MetricsWriter(tmp_path / "new", clock=clock)
  writer.write(1, {"distill/kl": jnp.float32(0.25), "n": np.int64(3)})
  expected = {"step": 1, "wall": 0.5, "distill/kl": 0.25, "n": 3}
  assert _lines(tmp_path / "new") == [expected]
  writer.close()
  writer.write(2, {"distill/kl": 0.0})
  assert len(_lines(tmp_path / "new")) == 1


def test_non_finite_values_stay_valid_json(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    values = {"a": math.nan, "b": jnp.inf, "c": np.float32(-np.inf)}
    writer.write(1, values)
  (line,) = _lines(tmp_path)
  assert (line["a"], line["b"], line["c"]) == ("nan", "inf", "-inf")
  (row,) = read_metrics(tmp_path)
  assert math.isnan(row["a"])
  assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_a_killed_and_resumed_run_leaves_the_lines_of_an_uninterrupted_one(
  tmp_path,
):
  _write(tmp_path / "whole", range(1, 7))
  _write(tmp_path / "killed", range(1, 6))
  with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "wall": 1.0, "distill/')
  _write(tmp_path / "killed", range(4, 7), resume_step=3)
  drop = lambda rows: [{**row, "wall": 0} for row in rows]
  whole, killed = _lines(tmp_path / "whole"), _lines(tmp_path / "killed")
  assert drop(killed) == drop(whole)
  assert [p.name for p in (tmp_path / "killed").iterdir()] == ["metrics.jsonl"]


def test_without_a_resume_step_only_torn_lines_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 9}\nnoise\n[1]\n{"step": 10, "x": 1}')
  _write(tmp_path, [11])
  assert [line["step"] for line in _lines(tmp_path)] == [9, 10, 11]
  _write(tmp_path, [1], resume_step=-1)
  assert [line["step"] for line in _lines(tmp_path)] == [1]


def test_wall_time_continues_after_a_resume(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "wall": 100.0}\n{"step": 2, "wall": 200.0}\n'
  )
  clock = iter([5.0, 6.5]).__next__
  _write(tmp_path, [2], resume_step=1, clock=clock)
  assert [line["wall"] for line in _lines(tmp_path)] == [100.0, 101.5]


def test_reading_skips_broken_lines(tmp_path):
  assert read_metrics(tmp_path) == []
  text = '{"step": 1, "a": 2}\n\n{"a": 1}\n\xff\n{"step": "x"}\n{"step": 2'
  (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
  assert read_metrics(tmp_path) == [{"step": 1, "a": 2}]


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  _write(tmp_path, [1, 2])
  assert not list(tmp_path.iterdir())


def test_values_that_are_not_scalars_are_refused(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    with pytest.raises(TypeError, match="'a' is 'text'"):
      writer.write(1, {"a": "text"})
    with pytest.raises(ValueError, match="would hide"):
      writer.write(1, {"wall": 1.0})
  assert _lines(tmp_path) == []


def test_an_unwritable_workdir_is_a_usage_error(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UsageError, match="file"):
    MetricsWriter(tmp_path / "file")


def test_tensorboard(tmp_path, monkeypatch):
  pytest.importorskip("tensorboardX")
  _write(tmp_path, [1, 2], tensorboard=True)
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert b"distill/kl" in events.read_bytes()
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(UsageError, match=r"dfkt-jax\[tensorboard\]"):
    MetricsWriter(tmp_path, tensorboard=True)
