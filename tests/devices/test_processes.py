"""Runs of two processes, each with a device of its own, on this machine."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dfkt_jax import data
from dfkt_jax.cli import exits
from dfkt_jax.devices import processes
from dfkt_jax.errors import UsageError
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import save_tiny

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"
TIMES = ("wall_seconds", "images_per_second")
SHORT = ("--steps", "8", "--batch-size", "16")
COMMANDS = {
  "dfq": (
    *("distill", "dfq", "--teacher", "NETWORK", "--student", "convnet-half"),
    *("--eval-dataset", "DATA", "--student-steps", "2", *SHORT),
    *("--latent", "4", "--generator-widths", "4", "4", "4"),
  ),
  "odsd": (
    *("distill", "odsd", "--teacher", "NETWORK", "--student", "convnet-half"),
    *("--eval-dataset", "DATA", "--pool", "DATA", "--pool-cache", "CACHE"),
    *("--num-images", "30", "--student-steps", "2", *SHORT),
  ),
  "synthesize": (
    *("synthesize", "dfq", "--teacher", "NETWORK", "--student", "NETWORK"),
    *("--steps", "4", "--num-images", "24", "--synthesis-batch-size", "16"),
    *("--latent", "4", "--generator-widths", "4", "4", "4"),
  ),
  "offline": (
    *("distill", "offline", "--teacher", "NETWORK", "--student"),
    *("convnet-half", "--transfer-set", "DATA", "--eval-dataset", "HELD"),
    *SHORT,
  ),
  "adapt": (
    *("adapt", "shot", "--source", "NETWORK", "--target", "DATA"),
    *("--eval-dataset", "DATA", "--pool-cache", "CACHE", *SHORT),
  ),
  "train": (
    *("teacher", "train", "--arch", "convnet-half", "--dataset", "DATA"),
    *("--eval-dataset", "DATA", *SHORT),
  ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  place = tmp_path_factory.mktemp("inputs")
  save_tiny(place / "t")
  chosen = data.load("digits/test")
  np.savez(place / "d", images=chosen.images[:40], labels=chosen.labels[:40])
  return place


def words(inputs: Path, command: str, work: Path, *flags: str) -> list[str]:
  places = {
    "NETWORK": inputs / "t",
    "DATA": f"npz:{inputs / 'd.npz'}",
    "HELD": "digits/train[:40]",
    "CACHE": inputs / "cache",
  }
  words = (*COMMANDS[command], *flags, "--workdir", work)
  return [str(places.get(word, word)) for word in words]


def start(words: list[str], *flags: str) -> subprocess.Popen:
  """Start both processes of a run with `launch/local.py`."""
  return subprocess.Popen(
    [sys.executable, str(LOCAL), *flags, "--", *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env={**os.environ, "PYTHONPATH": str(LOCAL.parents[1])},
    text=True,
  )


def alone(words: list[str]) -> None:
  """Do the same run in one process with two devices."""
  done = subprocess.run(
    [sys.executable, "-m", "dfkt_jax", *words],
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr


def figures(work: Path) -> tuple[dict, list[dict]]:
  result = json.loads((work / "result.json").read_text())
  result = {k: v for k, v in result.items() if k not in (*TIMES, "dataset")}
  rows = [
    {k: v for k, v in row.items() if k != "wall"} for row in read_metrics(work)
  ]
  return result, rows


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_give_the_figures_of_one(inputs, tmp_path, command):
  one, two = tmp_path / "one", tmp_path / "two"
  process = start(words(inputs, command, two))
  text, _ = process.communicate(timeout=300)
  assert process.returncode == 0, text
  assert text.count("workdir:") == 1  # only one of them prints
  alone(words(inputs, command, one))
  (result, rows), (expected, expected_rows) = figures(two), figures(one)
  assert result.keys() == expected.keys()
  for name, value in expected.items():
    same = pytest.approx(value, rel=1e-3) if type(value) is float else value
    assert result[name] == same, name
  assert len(rows) == len(expected_rows)
  for row, wanted in zip(rows, expected_rows, strict=True):
    assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def wait_for_rounds(work: Path, process: subprocess.Popen, count: int) -> None:
  deadline = time.monotonic() + 200
  while not work.exists() or len(read_metrics(work)) < count:
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)


def child(work: Path, number: int) -> int:
  """Return the process id of one of a run's two processes."""
  for place in Path("/proc").iterdir():
    try:
      said = (place / "environ").read_bytes().split(b"\0")
      line = (place / "cmdline").read_bytes().split(b"\0")
    except OSError:  # not a process, or gone, or not ours
      continue
    is_its = str(work).encode() in line and b"-m" in line
    if is_its and f"DFKT_PROCESS={number}".encode() in said:
      return int(place.name)
  raise AssertionError(f"process {number} of {work} does not run")


LONG = ("--steps", "200", "--checkpoint-seconds", "0.5")
LONGER = ("--steps", "4000", "--checkpoint-seconds", "0.5")


def wait_for_a_checkpoint(work: Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 200
  while not any(
    path.name.isdigit() for path in (work / "checkpoints").glob("*")
  ):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)


def wait_until_met(process: subprocess.Popen) -> None:
  """Wait until both processes are connected, before their first round."""
  for line in process.stdout:
    if "is connected to 1 peer ranks" in line:
      return
  raise AssertionError("the processes never met")


@pytest.mark.slow
def test_a_sigterm_to_one_saves_on_both(inputs, tmp_path):
  work = tmp_path / "w"
  process = start(words(inputs, "dfq", work, *LONGER))
  wait_for_rounds(work, process, 5)
  os.kill(child(work, 1), signal.SIGTERM)
  text, _ = process.communicate(timeout=200)
  assert process.returncode == 75, text
  for number in (0, 1):
    assert f"[{number}] dfkt: stopped after step" in text
  # And once more, before the first round of what is resumed.
  again = start(words(inputs, "dfq", work, *LONGER))
  wait_until_met(again)
  os.kill(child(work, 0), signal.SIGTERM)
  text, _ = again.communicate(timeout=200)
  assert again.returncode == 75, text
  assert "resuming after step" in text


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_rest_is_resumed(
  inputs, tmp_path
):
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  process = start(words(inputs, "dfq", killed, *LONG))
  wait_for_a_checkpoint(killed, process)
  os.kill(child(killed, 1), signal.SIGKILL)
  text, _ = process.communicate(timeout=100)
  assert process.returncode == 128 + signal.SIGKILL, text
  assert "local.py: process 1 ended with -9" in text
  assert not (killed / "result.json").exists()
  again = start(words(inputs, "dfq", killed, *LONG))
  text, _ = again.communicate(timeout=300)
  assert again.returncode == 0, text
  assert "resuming after step" in text
  alone(words(inputs, "dfq", whole, *LONG))
  (result, _), (expected, _) = figures(killed), figures(whole)
  assert result["accuracy_last"] == pytest.approx(expected["accuracy_last"])
  assert result["agreement_in_training"] == pytest.approx(
    expected["agreement_in_training"], rel=1e-3
  )


def images_of(work: Path):
  dataset = data.load(f"tfds:{work / 'dataset'}")
  return dataset.images.tobytes(), dataset.labels.tolist()


def in_one_process(*commands: list[str]) -> str:
  """Return the output of commands run in turn with one device."""
  code = (
    "import json, sys; from dfkt_jax.cli.dispatch import main;"
    "[main(words) for words in json.loads(sys.argv[1])]"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, json.dumps(commands)],
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_processes_that_need_not_meet_outlive_each_other(inputs, tmp_path):
  command = (
    *("synthesize", "deep-inversion", "--teacher", str(inputs / "t")),
    *("--num-images", "30", "--synthesis-batch-size", "8", "--steps", "100"),
    *("--checkpoint-seconds", "0", "--workdir"),
  )
  work, whole = tmp_path / "w", tmp_path / "whole"
  process = start([*command, str(work)])
  deadline = time.monotonic() + 200
  # The first of two rounds of its first batch.
  while not (work / "shards/00001/checkpoints/3.npz").exists():
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.kill(child(work, 1), signal.SIGKILL)
  text, _ = process.communicate(timeout=200)
  assert process.returncode == 128 + signal.SIGKILL, text
  assert "[0] 2 of 4 shards are not there yet" in text
  assert "connected to" not in text
  assert not (work / "result.json").exists()
  # One process makes what is missing, and all of it.
  text = in_one_process([*command, str(work)], [*command, str(whole)])
  assert "resuming after step 150 of 200" in text
  assert images_of(work) == images_of(whole)
  (result, rows), (expected, expected_rows) = figures(work), figures(whole)
  assert result == expected
  assert rows == expected_rows


def met(inputs: Path, tmp_path: Path, images: int, steps: int) -> str:
  """Write an experiment of independent batches whose processes connect."""
  file = tmp_path / "made.py"
  file.write_text(
    f"""
from pathlib import Path
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.synthesis.deep_inversion import DeepInversion

method = DeepInversion(synthesis_batch_size=8)
_made = Synthesize(method, Path("{inputs / "t"}"), {images}, steps={steps})

class Met:
  def run(self, options):
    return _made.run(options)

made = Met()
"""
  )
  return f"{file}:made"


@pytest.mark.slow
def test_processes_that_met_share_batches_out_too(inputs, tmp_path):
  work, whole = tmp_path / "w", tmp_path / "whole"
  made = met(inputs, tmp_path, 30, 4)
  process = start(["run", made, "--workdir", str(work)])
  text, _ = process.communicate(timeout=300)
  assert process.returncode == 0, text
  assert text.count("workdir:") == 1
  in_one_process(["run", made, "--workdir", str(whole)])
  assert images_of(work) == images_of(whole)
  assert figures(work) == figures(whole)


@pytest.mark.slow
def test_a_sigterm_to_one_of_those_that_met_ends_both(inputs, tmp_path):
  work = tmp_path / "w"
  made = met(inputs, tmp_path, 16, 20_000)
  process = start(["run", made, "--workdir", str(work)])
  deadline = time.monotonic() + 200
  while not all(
    (work / "shards" / name / "metrics.jsonl").exists()
    for name in ("00000", "00001")
  ):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)
  os.kill(child(work, 1), signal.SIGTERM)
  text, _ = process.communicate(timeout=100)
  assert process.returncode == 75, text
  for number in (0, 1):
    assert f"[{number}] dfkt: stopped after step" in text


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_both(inputs, tmp_path):
  # Only that process writes to the workdir.
  (tmp_path / "w").mkdir()
  (tmp_path / "w" / "mine.txt").write_text("not a workdir")
  process = start(words(inputs, "dfq", tmp_path / "w"))
  text, _ = process.communicate(timeout=200)
  assert process.returncode == 2, text
  assert "holds no config.json" in text


@pytest.mark.slow
def test_all_devices_of_several_processes_are_used(inputs, tmp_path):
  process = start(words(inputs, "dfq", tmp_path / "w", "--mesh", "data=1"))
  text, _ = process.communicate(timeout=200)
  assert process.returncode == 2, text
  assert "--mesh data=1: the 2 processes of this run have 2 devices" in text


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (ValueError("Gloo AllGather failed: reset by peer"), "no longer answer"),
    (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "unexpected Runtime"),
  ],
)
def test_what_others_are_blamed_for(error, said, monkeypatch, capsys):
  monkeypatch.setattr(exits, "_several_processes", lambda: True)
  monkeypatch.setattr(exits.os, "_exit", sys.exit)
  with pytest.raises(SystemExit, match="1"), exits.exit_on_error():
    raise error
  assert said in capsys.readouterr().err


def test_a_dry_run_prints_what_would_be_run():
  process = start(["list", "archs"], "--dry-run", "--processes", "3")
  text, _ = process.communicate(timeout=60)
  lines = text.splitlines()
  assert process.returncode == 0
  assert len(lines) == 3
  for number, line in enumerate(lines):
    assert line.startswith("env DFKT_COORDINATOR=127.0.0.1:")
    assert f"DFKT_PROCESSES=3 DFKT_PROCESS={number} " in line
    assert line.endswith("-m dfkt_jax list archs")


@pytest.mark.parametrize("flags", [("--processes", "0"), ("--port", "x")])
def test_local_refuses_what_is_no_count(flags):
  process = start(["list", "archs"], *flags)
  text, _ = process.communicate(timeout=60)
  assert process.returncode == 2
  assert "is not a whole number from 1 up" in text


ALL = {
  "DFKT_COORDINATOR": "127.0.0.1:1",
  "DFKT_PROCESSES": "2",
  "DFKT_PROCESS": "0",
}


@pytest.mark.parametrize(
  ("environment", "said"),
  [
    ({"DFKT_PROCESSES": "2"}, "DFKT_PROCESSES set and DFKT_COORDINATOR, DFKT"),
    (
      {**ALL, "DFKT_PROCESS": "2"},
      "DFKT_PROCESS is '2' and DFKT_PROCESSES '2'",
    ),
    ({**ALL, "DFKT_PROCESSES": "two"}, "DFKT_PROCESSES 'two': give a whole"),
    ({**ALL, "DFKT_CLUSTER": "1"}, "DFKT_CLUSTER and DFKT_COORDINATOR"),
  ],
)
def test_an_environment_that_does_not_fit_together(environment, said):
  with pytest.raises(UsageError, match=said):
    processes.initialize(environment)


def test_without_a_word_of_others_there_are_none():
  processes.initialize({})
  assert not jax.distributed.is_initialized()
