"""The whole way on real digits: quickstart's promise, and a floor a method."""

import json
import os
from pathlib import Path
import string
import subprocess
import sys

import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax.data import fonts
from dfkt_jax.evaluation.evaluator import evaluate

pytestmark = pytest.mark.slow


def dfkt(*words) -> str:
  """Runs a command as a user does, on one device; what it printed."""
  # These run for minutes: with XLA's optimisations, unlike the other tests.
  kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-m", "dfkt_jax", *map(str, words)],
    env={**kept, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
  place = tmp_path_factory.mktemp("quickstart") / "q"
  dfkt("quickstart", "--workdir", place)
  return place


def result(workdir: Path) -> dict:
  return json.loads((workdir / "result.json").read_text())


def test_data_free_beats_noise_and_nears_the_teacher(place):
  table = result(place / "data-free")["table"]
  teacher, with_data, free, noise = (row["accuracy"] for row in table)
  assert teacher > 0.97
  assert with_data > 0.96
  assert free > 0.96
  assert free > noise + 0.05
  assert table[2]["parameters"] < 0.26 * table[0]["parameters"]


def test_the_report_shows_the_digits_and_the_comparison(place):
  page = (place / "report.html").read_text()
  assert "data:image/png;base64" in page
  assert "the teacher alone" in page


def test_the_student_never_saw_the_data(place):
  config = json.loads((place / "data-free" / "config.json").read_text())
  assert config["teacher"] == str(place / "teacher" / "network")
  assert "digits/train" not in json.dumps(config)
  assert config["eval_dataset"] == "digits/test"


def test_the_student_on_disk_is_the_one_of_the_table(place):
  student, _ = teachers.load(place / "data-free" / "student")
  figures = evaluate(student, data.load("digits/test"))
  free = result(place / "data-free")
  assert figures["accuracy"] == free["accuracy_last"]
  assert free["accuracy_best"] >= free["accuracy_last"]


def test_an_independent_network_reads_inverted_digits(place, tmp_path):
  printed = dfkt(
    *("synthesize", "deep-inversion", "--num-images", 100, "--steps", 400),
    *("--synthesis-batch-size", 100, "--jitter", 1, "--class-weight", 5),
    *("--image-lr", 0.1, "--clip", True),
    *("--teacher", place / "teacher" / "network"),
    *("--verifier", place / "student-with-data" / "network"),
    *("--workdir", tmp_path / "w"),
  )
  assert "verifier_accuracy_on_targets" in printed
  figures = result(tmp_path / "w")
  assert figures["teacher_accuracy_on_targets"] > 0.95
  assert figures["verifier_accuracy_on_targets"] > 0.7  # chance is 0.1


def test_deep_inversion_teaches_a_student(place, tmp_path):
  dfkt(
    *("distill", "deep-inversion", "--student", "convnet-half"),
    *("--teacher", place / "teacher" / "network", "--workdir", tmp_path / "w"),
    *("--eval-dataset", "digits/test", "--synthesis-batch-size", 128),
    *("--batch-size", 128, "--synthesis-steps", 100, "--student-steps", 100),
    *("--steps", 800, "--pool-size", 1024, "--jitter", 1, "--flip", "False"),
    *("--crop-padding", 1, "--temperature", 4),
  )
  noise = result(place / "noise")["accuracy_last"]
  assert result(tmp_path / "w")["accuracy_last"] > max(0.85, noise)


PLAIN = [  # How a student learns: steadily, with crops alone.
  *("--student", "convnet-half", "--eval-dataset", "digits/test"),
  *("--steps", 800, "--student-steps", 100, "--batch-size", 128),
  *("--optimizer", "adam", "--lr", 2e-3, "--weight-decay", 0),
  *("--temperature", 4, "--crop-padding", 1, "--flip", "False"),
]
FROM_SHAPES = [
  *("--rotation", 0, "--shrink", 0, "--noise", 0, "--mix", 0),
  *("--salt-and-pepper", 0, "--synthesis-batch-size", 200),
  *("--pool-size", 2000, "--offline", True, "--synthesis-steps", 30),
  *("--start", "shapes", "--candidates", 20, "--image-lr", 0.05),
  *("--target-temperature", 4, "--tv-weight", 0.02, "--sum-weight", 0.005),
]


@pytest.fixture(scope="module")
def on_noise(place) -> float:
  """Accuracy of a student that learns from noise, everything else the same."""
  workdir = place / "plain-noise"
  teacher = place / "teacher" / "network"
  dfkt("distill", "noise", *PLAIN, "--teacher", teacher, "--workdir", workdir)
  return result(workdir)["accuracy_last"]


@pytest.mark.parametrize(
  "method", [("soft-target", "--sigma", 4), ("zskd",)], ids=lambda m: m[0]
)
def test_soft_labels_teach_a_student(place, tmp_path, on_noise, method):
  teacher = place / "teacher" / "network"
  words = [*method, *PLAIN, *FROM_SHAPES, "--teacher", teacher]
  dfkt("distill", *words, "--workdir", tmp_path / "w")
  accuracy = result(tmp_path / "w")["accuracy_last"]
  assert accuracy > max(0.3, on_noise + 0.05)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
  """Letters of the digits' size and colors, without any digit."""
  place = tmp_path_factory.mktemp("pool") / "letters.npz"
  rng = np.random.default_rng(0)
  np.savez(place, images=fonts.render(rng, string.ascii_letters, 40))
  return place


@pytest.mark.parametrize("method", ["random", "dfnd", "odsd", "mosaic-kd"])
def test_letters_teach_digits(place, tmp_path, on_noise, letters, method):
  small = []
  if method == "mosaic-kd":
    small = ["--generator-widths", 64, 64, 32]
    small += ["--discriminator-widths", 32, 64]
  dfkt(
    *("distill", method, *PLAIN, "--teacher", place / "teacher" / "network"),
    *("--pool", f"npz:{letters}", "--num-images", 1000, *small),
    *("--pool-cache", tmp_path / "cache", "--workdir", tmp_path / "w"),
  )
  assert result(tmp_path / "w")["accuracy_last"] > max(0.7, on_noise + 0.1)


def test_printed_digits_meet_handwritten_ones(tmp_path):
  experiment = Path(__file__).parents[2] / "experiments" / "sfda_digits.py"
  dfkt("run", experiment, "--workdir", tmp_path)
  shot, aad = (result(tmp_path / name) for name in ("shot", "aad"))
  assert shot["source_accuracy"] > 0.5
  assert shot["accuracy_last"] > shot["source_accuracy"] + 0.12
  assert aad["accuracy_last"] > aad["source_accuracy"] + 0.05
  page = (tmp_path / "report.html").read_text()
  assert page.count("data:image/png;base64") >= 2
