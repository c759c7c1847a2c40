"""Sweeps: the grid, simultaneous runs, and resuming after stops and faults."""

import csv
import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

SWEEP = Path(__file__).parents[2] / "launch" / "sweep.py"
SPEC = importlib.util.spec_from_file_location("sweep", SWEEP)
sweep = importlib.util.module_from_spec(SPEC)
# Its dataclass looks up its own module.
sys.modules["sweep"] = sweep
SPEC.loader.exec_module(sweep)

EXPERIMENT = """
import dataclasses, json, os, signal, sys, time

@dataclasses.dataclass(frozen=True)
class Toy:
  rate: float = 0.5
  seed: int = 0
  wait: float = 0.0
  def run(self, options):
    options.workdir.mkdir(parents=True, exist_ok=True)
    if self.rate < 0:
      raise ValueError("the rate is negative")
    def stop(*_):
      sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (options.workdir / "began").write_text(os.environ.get("SLOT", ""))
    time.sleep(self.wait)
    result = {"accuracy_last": self.rate + self.seed / 100, "wall_seconds": 1.0}
    (options.workdir / "result.json").write_text(json.dumps(result))
    return result

toy = Toy()
"""


@pytest.fixture
def words(tmp_path):
  (tmp_path / "toys.py").write_text(EXPERIMENT)
  return [f"{tmp_path / 'toys.py'}:toy", "--workdir", str(tmp_path / "w")]


def start(words):
  return subprocess.Popen(
    [sys.executable, str(SWEEP), *words],
    env={**os.environ, "PYTHONPATH": str(SWEEP.parents[1])},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(words):
  process = start(words)
  text, _ = process.communicate(timeout=300)
  return process.returncode, text


def dry(words, capsys):
  assert sweep.main([*words, "--dry-run"]) == 0
  return capsys.readouterr().out.splitlines()


def test_a_dry_run_has_a_line_a_run(words, capsys, tmp_path):
  grid = ("--grid", "rate=0.1,0.2", "--grid", "shape=[1,2],[3]")
  lines = dry([*words, "--seeds", "0", "7", *grid], capsys)
  assert len(lines) == len(set(lines)) == 8
  assert lines[0].endswith("--seed 0 --set rate=0.1 'shape=[1,2]'")
  parts = [
    dry([*words, "--seeds", "0", "7", *grid, "--part", f"{i}/3"], capsys)
    for i in (1, 2, 3)
  ]
  assert sorted(sum(parts, [])) == sorted(lines)
  assert not (tmp_path / "w").exists()


def test_folders_are_named_after_their_runs(tmp_path):
  words = ["./experiments/d.py:dfq", "--workdir", str(tmp_path)]
  args = sweep._parse([*words, "--grid", "learner.lr=0.1,0.2"])
  assert [run.workdir.name for run in sweep._runs(args)] == [
    "experiments-d.py.dfq_learner.lr=0.1_seed=0",
    "experiments-d.py.dfq_learner.lr=0.2_seed=0",
  ]


def test_every_run_has_a_folder_of_its_own():
  long = ["x" * 300 + end for end in "ab"]
  names = ["a/b_c", "a b_c", "a:b_c", *long]
  folders = [sweep._safe(name) for name in names]
  assert len(set(folders)) == len(names)
  assert all(len(folder) < 240 and "/" not in folder for folder in folders)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--grid", "rate"), "is not NAME=VALUE"),
    (("--part", "4/3"), "an I from 1 to N"),
    (("--jobs", "0"), "give 1 or more"),
    (("--flags", "--set rate=1"), "--flags has --set"),
    (("--jobs", "3", "--each", "GPU=0,1"), "--each has 2 values"),
  ],
)
def test_flags_that_do_not_describe_a_sweep_are_refused(
  words, capsys, flags, message
):
  with pytest.raises(SystemExit) as stop:
    sweep.main([*words, *flags])
  assert stop.value.code == 2
  assert message in capsys.readouterr().err


def test_runs_that_would_share_a_folder_are_refused(words):
  with pytest.raises(SystemExit, match="share a folder"):
    sweep.main([*words, "--grid", "rate=1,1", "--dry-run"])


def test_a_sweep_reports_faults_and_resumes_after_finished_runs(
  words, tmp_path
):
  grid = ("--grid", "rate=0.25,-1", "--each", "SLOT=a,b", "--seeds", "1", "2")
  code, text = finish([*words, *grid])
  assert code == 1, text
  assert text.count("failed: ") == 2
  assert "the rate is negative" in text
  # The mean over both seeds, and its ends.
  assert "26.50% (26.00%..27.00%)" in text
  began = {path.read_text() for path in (tmp_path / "w").glob("*/began")}
  assert began == {"a", "b"}
  with open(tmp_path / "w" / "table.csv") as file:
    rows = list(csv.DictReader(file))
  assert [(row["seed"], row["accuracy_last"]) for row in rows] == [
    ("1", "0.26"),
    ("2", "0.27"),
  ]
  code, text = finish([*words, *grid[:1], "rate=0.25", *grid[2:]])
  assert code == 0
  assert "2 runs, 2 of them finished" in text
  assert "started" not in text


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--jobs", "1"], {}),
    (["--jobs", "2"], {"JAX_NUM_CPU_DEVICES": "1"}),
    (["--jobs", "2", "--flags", "--mesh data=2"], {}),
    (["--each", "A=x,y"], {"A": "y", "JAX_NUM_CPU_DEVICES": "1"}),
  ],
)
def test_runs_that_share_a_cpu_are_one_device_each(
  words, monkeypatch, flags, expected
):
  monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
  assert sweep._own(sweep._parse([*words, *flags]), 1) == expected
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
  kept = {name: "3" for name in expected if name != "A"}
  assert expected | kept == sweep._own(sweep._parse([*words, *flags]), 1)


def test_a_stop_is_forwarded_and_starts_nothing_new(words, tmp_path):
  process = start([*words, "--grid", "wait=100", "--seeds", "1", "2"])
  began = lambda: list((tmp_path / "w").glob("*/began"))
  deadline = time.monotonic() + 120
  while not began() and time.monotonic() < deadline:
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  text, _ = process.communicate(timeout=120)
  assert process.returncode == 75, text
  assert text.count("started") == text.count("stopped") == 1
  assert len(began()) == 1


def test_a_sweep_that_is_killed_stops_its_runs(words, tmp_path):
  process = start([*words, "--grid", "wait=100"])
  began = lambda: list((tmp_path / "w").glob("*/began"))
  deadline = time.monotonic() + 120
  while not began() and time.monotonic() < deadline:
    time.sleep(0.1)
  (run,) = began()
  process.kill()
  process.communicate(timeout=60)
  alive = lambda: (
    subprocess.run(
      ["pgrep", "-f", str(run.parent)], capture_output=True, check=False
    ).stdout
  )
  while alive() and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not alive()


def test_the_table_has_the_finished_runs(words, tmp_path, capsys):
  runs = list(sweep._runs(sweep._parse([*words, "--seeds", "0", "1"])))
  runs[1].workdir.mkdir(parents=True)
  (runs[1].workdir / "result.json").write_text(json.dumps({"agreement": 0.5}))
  sweep._report(sweep._parse(words), runs)
  shown = capsys.readouterr().out
  assert "50.00%" in shown
