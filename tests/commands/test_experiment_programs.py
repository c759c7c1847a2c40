"""An experiment's programs, compiled for devices that are not there."""

import dataclasses
import json

import jax
import pytest
from rich.console import Console

from dfkt_jax.bench import scaling, topologies
from dfkt_jax.bench.workloads import Settings
from dfkt_jax.commands import experiment_programs
from dfkt_jax.commands.bench import Bench
from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.commands.train import TrainTeacher
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from tests.assets import package
from tests.networks import save_tiny

GENERATOR = DFQ(synthesis_batch_size=8, latent=8, generator_widths=(8, 8, 8))
FRESH = Recipe(steps=4, batch_size=8, student_steps=2)
STORED = dataclasses.replace(FRESH, memory_size=32, synthesis_steps=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp("teacher") / "t"
  save_tiny(place)
  return place


def compiled(config, mesh):
  found = scaling.measure(experiment_programs.prepare(config), {}, [mesh])
  return {row["program"]: row for row in found}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("source", "recipe", "names"),
  [
    (GENERATOR, FRESH, ["DFQ", "student", "the whole round"]),
    (
      DeepInversion(synthesis_batch_size=8),
      STORED,
      ["DeepInversion", "push to replay buffer", "student", "the whole round"],
    ),
  ],
)
def test_a_distillation_on_eight_devices(teacher, source, recipe, names):
  config = Distill(source, KD(), recipe, teacher, "convnet-half")
  alone = compiled(config, make_mesh(1))
  shared = compiled(config, make_mesh(8))
  assert list(alone) == list(shared) == names
  for name in ("student", names[0]):
    share = shared[name]["flops_per_device"] / alone[name]["flops_per_device"]
    assert share < 0.2
    assert set(shared[name]["collectives"]) <= {"all-reduce", "all-gather"}


def test_the_stages_of_a_synthesis(teacher):
  class InTwo(DeepInversion):
    def stages(self, steps):
      return [(self.step, steps - 1), (self.step, 1)]

  config = Synthesize(InTwo(synthesis_batch_size=8), teacher, steps=5)
  with jax.set_mesh(make_mesh(8)):
    first, second = experiment_programs.prepare(config)()
  assert (first.name, first.times) == ("InTwo, stage 1 of 2", 4)
  assert (second.name, second.times) == ("InTwo, stage 2 of 2", 1)


@pytest.mark.parametrize("target", ["teacher", "stored"])
def test_a_student_of_a_transfer_set(teacher, target):
  config = Distill(
    Offline(),
    KD(target=target),
    Recipe(steps=4, batch_size=16),
    teacher,
    "convnet-half",
    transfer_set="tfds:x",
  )
  (row,) = compiled(config, make_mesh(8)).values()
  assert row["program"] == "student"
  assert set(row["collectives"]) == {"all-reduce"}


def test_a_round_compiles_for_tpus(teacher):
  package("libtpu")
  config = Distill(GENERATOR, KD(), FRESH, teacher, "convnet-half")
  found = compiled(config, topologies.topology_mesh("v5e:2x2"))
  whole = found["the whole round"]
  assert whole["device_kind"] == "TPU v5 lite"
  assert whole["devices"] == 4
  assert 0 < whole["argument_bytes_per_device"] < 10**7
  assert set(whole["collectives"]) == {"all-reduce"}


def test_by_its_name(teacher, tmp_path):
  package("libtpu")
  (tmp_path / "mine.py").write_text(f"""
from pathlib import Path
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.synthesis.deep_inversion import DeepInversion
noise = Synthesize(DeepInversion(), teacher=Path({str(teacher)!r}))
""")
  console = Console(record=True, soft_wrap=True, quiet=True)
  Bench(
    "scaling",
    experiment=f"{tmp_path}/mine.py:noise",
    set=("method.synthesis_batch_size=16",),
    topology="v5e:2x2",
    json=tmp_path / "found.json",
  ).run(console)
  (row,) = json.loads((tmp_path / "found.json").read_text())["programs"]
  assert row["program"] == "DeepInversion"
  assert row["set"] == ["method.synthesis_batch_size=16"]


def test_experiments_of_another_kind():
  config = TrainTeacher(None, "resnet20", "digits/train")  # type: ignore
  with pytest.raises(UsageError, match="is a TrainTeacher: give a Synthesize"):
    experiment_programs.prepare(config)


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ({"workload": "distill", "experiment": "x.py"}, "--experiment is for dfkt"),
    ({"workload": "scaling", "set": ("a=1",)}, "--set is for the fields"),
    (
      {
        **{"workload": "scaling", "experiment": "x.py"},
        "settings": Settings(batch=8),
      },
      "--batch and the like are not an --experiment's",
    ),
  ],
)
def test_flags_that_do_not_go_together(flags, said):
  with pytest.raises(UsageError, match=said):
    Bench(**flags).run(Console(quiet=True))
