"""`dfkt distill offline`: students from transfer sets on disk."""

import contextlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax import network as net
from dfkt_jax.cli import dispatch
from dfkt_jax.commands.distill import Distill
from dfkt_jax.data import builder, shards
from dfkt_jax.data.transfer_set import open_transfer_set
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import Preempted, UsageError
from dfkt_jax.runs import driver
from dfkt_jax.runs.driver import RunOptions
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import save_tiny, spec

FAST = (
  *("--lr", "0.05", "--batch-size", "32", "--evaluations", "1"),
  *("--mesh", "data=1"),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """One that has learnt digits."""
  place = tmp_path_factory.mktemp("teacher") / "t"
  dispatch.main(
    [
      *("teacher", "train", "--arch", "convnet-half", "--out", str(place)),
      *("--dataset", "digits/train", "--steps", "80", "--batch-size", "32"),
      *("--crop-padding", "0", "--flip", "False", "--lr", "0.05"),
      *("--mesh", "data=1"),
    ]
  )
  return place


@pytest.fixture(scope="module")
def soft_set(teacher, tmp_path_factory):
  """Half of the training set with the teacher's answers as soft labels."""
  network, _ = teachers.load(teacher)
  chosen = data.load("digits/train[:640]")
  place = tmp_path_factory.mktemp("sets") / "soft"
  layout = shards.Layout(place, 2, network.spec, soft_labels=True)
  for number in range(2):
    part = slice(number * 320, (number + 1) * 320)
    images = chosen.images[part]
    answers = _logits(network, images)
    shards.write(layout, number, images, chosen.labels[part], answers)
  shards.finish(layout, [320, 320])
  return place


def _logits(network, images):
  return np.asarray(net.logits(network, jnp.asarray(images, jnp.float32) / 255))


def words(teacher: Path, transfer_set: str, work: Path, *flags: str):
  return [
    *("distill", "offline", "--teacher", str(teacher), "--student"),
    *("convnet-half", "--transfer-set", transfer_set, "--workdir", str(work)),
    *FAST,
    *flags,
  ]


@pytest.mark.parametrize("target", ["teacher", "stored"])
def test_a_student_learns_from_what_is_stored(
  teacher, soft_set, tmp_path, target
):
  work = tmp_path / "w"
  flags = ("--steps", "90", "--eval-dataset", "digits/test[:100]")
  dispatch.main(
    words(teacher, f"tfds:{soft_set}", work, *flags, "--target", target)
  )
  result = json.loads((work / "result.json").read_text())
  assert result["accuracy_last"] > 0.6  # chance is 0.1
  assert result["method"] == "Offline"
  assert result["transfer_set"] == f"tfds:{soft_set}"
  assert result["transfer_images"] == 640
  assert result["steps"] == 90
  assert teachers.load(work)[1].arch == "convnet-half"
  assert (work / "images" / "transfer_set.png").exists()


def test_it_goes_on_at_the_very_next_example(
  teacher, soft_set, tmp_path, monkeypatch
):
  config = Distill(
    Offline(),
    KD(lr=0.05, crop_padding=1, target="stored"),
    Recipe(steps=60, batch_size=12, student_steps=20),
    teacher,
    "convnet-half",
    transfer_set=f"tfds:{soft_set}",
  )
  run = lambda work: config.run(RunOptions(work, mesh="data=1"))
  run(tmp_path / "whole")

  @contextlib.contextmanager
  def told_to_stop_after_a_round():
    yield lambda rounds: rounds == 1

  with monkeypatch.context() as patch:
    patch.setattr(driver, "stop_signals", told_to_stop_after_a_round)
    for _ in range(2):
      with pytest.raises(Preempted):
        run(tmp_path / "stopped")
  run(tmp_path / "stopped")
  rows = [
    [
      {k: v for k, v in row.items() if k != "wall"}
      for row in read_metrics(tmp_path / run)
    ]
    for run in ("whole", "stopped")
  ]
  assert rows[0] == rows[1]
  digests = {
    teachers.digest(tmp_path / run / "student") for run in ("whole", "stopped")
  }
  assert len(digests) == 1


def test_labels_of_other_classes_are_passed_over(tmp_path):
  images = np.zeros((6, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "few", images=images, labels=np.arange(6))
  few = open_transfer_set(f"npz:{tmp_path / 'few.npz'}", spec())
  assert [int(few[i].labels) for i in range(6)] == list(range(6))
  assert few[0].soft_labels is None
  np.savez(tmp_path / "many", images=images, labels=np.arange(6) + 95)
  many = open_transfer_set(f"npz:{tmp_path / 'many.npz'}", spec())
  assert {int(many[i].labels) for i in range(6)} == {-1}
  dataset = data.Dataset("d", images, np.arange(6, dtype=np.int32))
  place = builder.write("six", {"train": dataset}, tmp_path)
  six = open_transfer_set(f"tfds:{place}", spec())
  assert {int(six[i].labels) for i in range(6)} == {-1}


def refused(capsys, words):
  with pytest.raises(SystemExit) as stop:
    dispatch.main(words)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith("dfkt: ")
  assert error.count("\n") == 1
  return error


def test_refusals(soft_set, tmp_path, capsys):
  save_tiny(tmp_path / "t")
  work = tmp_path / "w"
  no = lambda source, *flags: refused(
    capsys, words(tmp_path / "t", source, work, *flags)
  )
  assert "--target stored and --transfer-set digits has no soft labels" in no(
    "digits", "--target", "stored"
  )
  assert "--mix is 0.5" in no(
    *(f"tfds:{soft_set}", "--target", "stored", "--mix", "0.5")
  )
  images = np.zeros((6, 4, 4, 1), np.uint8)
  np.savez(tmp_path / "small", images=images, labels=np.arange(6))
  assert "images [4, 4, 1] and the teacher takes [8, 8, 1]" in no(
    f"npz:{tmp_path / 'small.npz'}"
  )
  assert "'digit' is unknown" in no("digit")
  assert "is unknown to tfds" in no(f"tfds:{tmp_path / 'none'}")
  assert "--batch-size is 0" in no("digits", "--batch-size", "0")
  assert "--steps is 0" in no("digits", "--steps", "0")
  images = np.zeros((6, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "many", images=images, labels=np.arange(6) + 95)
  assert "the labels of --transfer-set npz:" in no(
    f"npz:{tmp_path / 'many.npz'}", "--hard-label-weight", "1"
  )
  assert not work.exists()


def test_images_that_are_learnt_from_are_not_evaluated_on(
  soft_set, tmp_path, capsys
):
  said = refused(
    capsys,
    [
      *(
        "distill",
        "offline",
        "--teacher",
        str(tmp_path),
        "--student",
        "lenet5",
      ),
      *("--transfer-set", "digits", "--eval-dataset", "digits/test"),
      *("--workdir", str(tmp_path / "w")),
    ],
  )
  assert "are both digits/test" in said


def test_soft_labels_of_other_classes_are_none(soft_set):
  with pytest.raises(UsageError, match="takes"):
    open_transfer_set(f"tfds:{soft_set}", spec(channels=3))
  ten = open_transfer_set(f"tfds:{soft_set}", spec())
  assert ten.has_soft_labels
  nine = open_transfer_set(f"tfds:{soft_set}", spec(classes=9))
  assert not nine.has_soft_labels
  assert not nine.has_labels


def test_any_learner_learns_from_a_stored_set(teacher, soft_set, tmp_path):
  work = tmp_path / "w"
  flags = ("--learner", "odsd", "--steps", "20", "--prototype-temperature", "1")
  dispatch.main(words(teacher, f"tfds:{soft_set}", work, *flags))
  result = json.loads((work / "result.json").read_text())
  assert result["learner"] == "ContrastiveRelations"
  assert "distillation/contrast" in read_metrics(work)[-1]


def test_offline_is_among_the_methods(capsys):
  dispatch.main(["list", "methods"])
  assert "offline" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    dispatch.main(["distill", "--help"])
  assert "offline" in capsys.readouterr().out
