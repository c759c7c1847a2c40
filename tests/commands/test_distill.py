"""`dfkt distill`: any learner with any source, and what is refused."""

import json

import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax.cli import dispatch
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import save_tiny

SMALL = ["--steps", "4", "--student-steps", "2", "--batch-size", "8"]
GENERATOR = [
  *("--synthesis-batch-size", "8", "--latent", "4"),
  *("--generator-widths", "4", "4", "4"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  place = tmp_path_factory.mktemp("inputs")
  save_tiny(place / "t")
  digits = data.load("digits/test")
  np.savez(place / "pool", images=digits.images[40:140])
  return place


def distill(inputs, workdir, *flags):
  words = [
    *("distill", *flags, "--teacher", inputs / "t", "--student"),
    *("convnet-half", *SMALL, "--mesh", "data=1", "--workdir", workdir),
    *("--pool-cache", inputs / "cache"),
  ]
  dispatch.main([str(word) for word in words])
  return json.loads((workdir / "result.json").read_text())


def test_dfq_with_odsds_learner(inputs, tmp_path):
  flags = ["dfq", *GENERATOR, "--learner", "odsd"]
  result = distill(inputs, tmp_path / "w", *flags)
  assert result["method"] == "DFQ"
  assert result["learner"] == "ContrastiveRelations"
  last = read_metrics(tmp_path / "w")[-1]
  assert last["distillation/contrast"] > 0
  assert last["distillation/relation"] > 0
  assert "synthesis/bn_distance" in last


def test_random_images_with_dfnds_learner(inputs, tmp_path):
  flags = ["random", "--pool", f"npz:{inputs / 'pool.npz'}"]
  flags += ["--num-images", "30", "--learner", "dfnd"]
  result = distill(inputs, tmp_path / "w", *flags, "--noise-lr", "0.01")
  assert result["learner"] == "NoiseAdaptation"
  assert read_metrics(tmp_path / "w")[-1]["distillation/noisy_label"] > 0


QUIET = '''
"""A learner that logs its loss and nothing else."""

import dataclasses
from typing import NamedTuple

import jax

from dfkt_jax.distillation.kd import KD


class Info(NamedTuple):
  loss: jax.Array


@dataclasses.dataclass(frozen=True)
class Quiet:
  kd: KD = KD()

  def init(self, key, student, context):
    return self.kd.init(key, student, context)

  def step(self, key, state, context):
    state, info = self.kd.step(key, state, context)
    return state, Info(info.distance)

  def student(self, state):
    return state.student


@dataclasses.dataclass(frozen=True)
class Remembers:
  """Makes an asset on the host and shows it."""

  def prepare(self, rng, context):
    return {"level": rng.uniform(size=(1,)).astype("float32")}

  def init(self, key, context):
    return context.assets["level"]

  def step(self, key, state, context):
    return state, Info((context.assets["level"] - state)[0])

  def sample(self, key, state, count):
    import jax.numpy as jnp
    from dfkt_jax.contracts import unlabelled

    return unlabelled(jnp.full((count, 8, 8, 1), state[0]))
'''


def test_a_learner_without_agreement_ends_with_a_student(inputs, tmp_path):
  (tmp_path / "quiet.py").write_text(QUIET)
  flags = ["noise", "--learner", f"{tmp_path / 'quiet.py'}:Quiet"]
  result = distill(inputs, tmp_path / "w", *flags)
  assert result["agreement_in_training"] is None
  assert teachers.load(tmp_path / "w" / "student")[1].arch == "convnet-half"


def test_assets_are_prepared_once_for_every_step(inputs, tmp_path):
  (tmp_path / "quiet.py").write_text(QUIET)
  flags = [f"{tmp_path / 'quiet.py'}:Remembers"]
  distill(inputs, tmp_path / "w", *flags)
  rows = read_metrics(tmp_path / "w")
  assert {row["synthesis/loss"] for row in rows} == {0.0}


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["random"], ["--pool is not given and RandomSelection takes"]),
    (["offline"], ["--transfer-set is not given and Offline takes"]),
    (["noise", "--pool", "npz:x"], ["--pool is npz:x and Noise", "leave it"]),
    (["noise", "--transfer-set", "digits"], ["--transfer-set is digits"]),
    (["noise", "--selection", "x.csv"], ["--selection is x.csv and Noise"]),
    (["noise", "--num-images", "9"], ["--num-images is 9 and Noise does not"]),
    (["noise", "--checkpoint-seconds=-1"], ["--checkpoint-seconds is -1"]),
    (
      ["random", "--pool", "npz:x", "--memory-size", "9"],
      ["--memory-size is 9 and RandomSelection learns from images on disk"],
    ),
    (["noise", "--learner", "kdd"], ["learner 'kdd'", "did you mean kd?"]),
    (["noise", "--memory-size", "9"], ["--memory-size is 9", "makes 64"]),
    (["noise", "--offline", "True"], ["--offline fills a replay buffer"]),
    (["noise", "--lr", "-1"], ["--lr is -1: give 0 or more"]),
  ],
)
def test_what_does_not_fit_is_refused(inputs, tmp_path, capsys, flags, parts):
  with pytest.raises(SystemExit) as stop:
    distill(inputs, tmp_path / "w", *flags)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  for part in parts:
    assert part in error
  assert not (tmp_path / "w").exists()


def test_the_old_name_of_the_memory_is_accepted(inputs, tmp_path, capsys):
  flags = ["deep-inversion", "--synthesis-batch-size", "8"]
  flags += ["--pool-size", "16", "--synthesis-steps", "2"]
  distill(inputs, tmp_path / "w", *flags)
  config = json.loads((tmp_path / "w" / "config.json").read_text())
  assert config["recipe"]["memory_size"] == 16
  said = capsys.readouterr()
  assert "--pool-size is now --memory-size" in said.out + said.err
