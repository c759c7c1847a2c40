"""`dfkt teacher train` on a streamed dataset."""

import json
import os
from pathlib import Path
import subprocess
import sys
import time

import pytest

from dfkt_jax import data, teachers
from dfkt_jax.cli.dispatch import main
from dfkt_jax.data import builder
from dfkt_jax.runs.metrics import read_metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  digits = data.load("digits/train[:200]")
  folder = tmp_path_factory.mktemp("datasets")
  return builder.write("some_digits", {"train": digits}, folder)


def words(dataset: Path, work: Path) -> list[str]:
  return [
    *("teacher", "train", "--arch", "convnet-half"),
    *("--dataset", f"tfds:{dataset}/train", "--workdir", str(work)),
    *("--steps", "300", "--batch-size", "16", "--lr", "0.02"),
    *("--crop-padding", "0", "--flip", "False"),
    *("--checkpoint-seconds", "0.3", "--mesh", "data=1"),
  ]


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
  dataset, tmp_path, capsys
):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  process = subprocess.Popen(
    [sys.executable, "-m", "dfkt_jax", *words(dataset, killed)],
    stdout=subprocess.DEVNULL,
    # The number of devices of this process, so that sums have the same order.
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
  )
  saved = killed / "checkpoints"
  deadline = time.monotonic() + 100
  while not any(path.name.isdigit() for path in saved.glob("*")):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.02)
  process.kill()
  process.wait()
  assert not (killed / "result.json").exists()
  main(words(dataset, killed))
  assert "resuming after step" in "".join(capsys.readouterr())
  main(words(dataset, whole))
  rows = [
    [{k: v for k, v in row.items() if k != "wall"} for row in read_metrics(run)]
    for run in (whole, killed)
  ]
  assert rows[0] == rows[1]
  assert rows[0][-1]["train/accuracy"] > 0.5
  digests = {teachers.digest(run / "network") for run in (whole, killed)}
  assert len(digests) == 1
  result = json.loads((killed / "result.json").read_text())
  assert result["dataset"] == f"tfds:{dataset}/train"
