"""A run that is killed at any moment and run again ends as if it never was."""

import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import save_tiny

pytestmark = pytest.mark.slow
TIMES = ("wall_seconds", "images_per_second", "device")
BATCH = ["--synthesis-batch-size", "16"]
METHODS = {
  "dfq": [*BATCH, "--latent", "4", "--generator-widths", "4", "4", "4"],
  "deep-inversion": [*BATCH, "--synthesis-steps", "4", "--pool-size", "64"],
  # A transfer set first, then only the student.
  "soft-target": [*BATCH, "--synthesis-steps", "4", "--pool-size", "64"],
  # Batches come from the disk.
  "odsd": ["--pool", "POOL", "--num-images", "90", "--pool-cache", "CACHE"],
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  place = tmp_path_factory.mktemp("inputs")
  save_tiny(place / "t")
  chosen = data.load("digits/test")
  np.savez(place / "d", images=chosen.images[:40], labels=chosen.labels[:40])
  np.savez(place / "pool", images=data.load("digits/train").images[:120])
  return place


def start(inputs: Path, method: str, work: Path) -> subprocess.Popen:
  command = [
    *(sys.executable, "-m", "dfkt_jax", "distill", method),
    *("--teacher", inputs / "t", "--student", "convnet-half"),
    *("--eval-dataset", f"npz:{inputs / 'd.npz'}", "--workdir", work),
    *("--steps", "160", "--student-steps", "2", "--batch-size", "16"),
    *("--checkpoint-seconds", "0.3", *METHODS[method]),
  ]
  places = {"POOL": f"npz:{inputs / 'pool.npz'}", "CACHE": inputs / "cache"}
  command = [places.get(word, word) for word in command]
  # One fake device: the suite's eight would only slow this down.
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen(
    [str(word) for word in command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=environment,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  text, _ = process.communicate(timeout=300)
  assert process.returncode == 0, text
  return text


def outcome(work: Path):
  result = json.loads((work / "result.json").read_text())
  figures = {k: v for k, v in result.items() if k not in TIMES}
  rows = [
    {k: v for k, v in row.items() if k != "wall"} for row in read_metrics(work)
  ]
  return figures, rows, teachers.digest(work / "student")


def rounds_done(work: Path) -> int:
  rows = read_metrics(work) if work.exists() else []
  return rows[-1]["step"] // 2 if rows else 0


def wait_for(process, work, rounds):
  deadline = time.monotonic() + 200
  while rounds_done(work) < rounds and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize("method", METHODS)
def test_kill_9_at_random_moments(inputs, tmp_path, method):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  finish(start(inputs, method, whole))
  chance = random.Random(method)
  for moment in (chance.randrange(1, 20), chance.randrange(30, 70)):
    process = start(inputs, method, killed)
    wait_for(process, killed, moment)
    process.kill()
    process.communicate()
    assert not (killed / "result.json").exists()
  text = finish(start(inputs, method, killed))
  assert "resuming after step" in text
  assert outcome(killed) == outcome(whole)


def test_sigterm_saves_and_exits_75(inputs, tmp_path):
  work = tmp_path / "w"
  process = start(inputs, "dfq", work)
  wait_for(process, work, 5)
  process.send_signal(signal.SIGTERM)
  text, _ = process.communicate(timeout=120)
  assert process.returncode == 75, text
  assert "run the same command again" in text
  saved = {int(p.name) for p in (work / "checkpoints").iterdir()}
  assert max(saved) == rounds_done(work)
