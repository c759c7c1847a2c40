"""Programs compiled by the end of the first round serve all later ones."""

import jax
import numpy as np
import pytest

from dfkt_jax.cli import dispatch
from dfkt_jax.runs.metrics import MetricsWriter
from tests.networks import save_tiny

COMPILED = "/jax/core/compile/backend_compile_duration"
GENERATOR = ["--latent", "4", "--generator-widths", "4", "4", "4"]
STUDENT = ["--student", "convnet-half", "--batch-size", "8"]
DISTILL = [
  *(*STUDENT, "--student-steps", "2", "--synthesis-batch-size", "8"),
  *("--steps", "10", "--evaluations", "5"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp("teacher") / "t"
  save_tiny(place)
  return place


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Sixteen labelled 8x8 images, twice a batch."""
  place = tmp_path_factory.mktemp("data") / "few.npz"
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (16, 8, 8, 1), np.uint8)
  np.savez(place, images=images, labels=np.arange(16) % 10)
  return f"npz:{place}"


@pytest.fixture
def logged(monkeypatch):
  """(step, programs compiled until it was logged), observations included."""
  count, found = 0, []

  def listen(name, seconds, **_):
    nonlocal count
    count += name == COMPILED

  write = MetricsWriter.write

  def spy(writer, step, metrics):
    found.append((step, count))
    write(writer, step, metrics)

  monkeypatch.setattr(MetricsWriter, "write", spy)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


def check(logged, rounds, first=0):
  """Nothing is compiled after the round of this number."""
  assert len(logged) >= rounds
  steps, counts = zip(*logged)
  assert counts[first] > 0
  later = {
    step: more - counts[first]
    for step, more in zip(steps[first:], counts[first:])
  }
  assert set(later.values()) == {0}, f"programs compiled until step: {later}"


@pytest.mark.parametrize(
  "method",
  [
    ["dfq", *GENERATOR],
    ["deep-inversion", "--pool-size", "16", "--synthesis-steps", "2"],
  ],
  ids=lambda method: method[0],
)
def test_distill(method, teacher, digits, tmp_path, logged):
  name, *flags = method
  words = ["distill", name, "--teacher", teacher, "--workdir", tmp_path / "w"]
  words += [*DISTILL, *flags, "--eval-dataset", digits]
  dispatch.main([str(word) for word in words])
  check(logged, 5)


def test_adapt(teacher, digits, tmp_path, logged):
  words = ["adapt", "shot", "--source", teacher, "--workdir", tmp_path / "w"]
  words += ["--target", digits, "--eval-dataset", digits, "--epochs", "4"]
  words += ["--batch-size", "8", "--pool-cache", tmp_path / "cache"]
  dispatch.main([str(word) for word in words])
  # Four epochs of two steps; labels are first made anew at the second, which
  # is after the first observation.
  check(logged, 8, first=3)


def test_synthesize(teacher, tmp_path, logged):
  words = ["synthesize", "deep-inversion", "--teacher", teacher]
  words += ["--workdir", tmp_path / "w", "--synthesis-batch-size", "8"]
  words += ["--num-images", "32", "--steps", "2", "--verifier", teacher]
  dispatch.main([str(word) for word in words])
  # A batch begins anew for the first time before the second.
  check(logged, 4, first=1)
