import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.bench import timing, workloads
from dfkt_jax.bench.peaks import peak
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.errors import UsageError
from tests.bench.networks import SETTINGS, small  # noqa: F401

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.slow
@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_a_workload_runs_and_records_the_keys_of_the_reference(name):
  (record,) = timing.records([name], SETTINGS, make_mesh(2))
  reference = "framework workload arch batch device precision"
  assert {key: record[key] for key in reference.split()} == {
    **dict(framework="jax", workload=name, arch="resnet20"),
    **dict(batch=16, device="cpu", precision="f32"),
  }
  updates = {"inversion": 1, "distill": 1, "generator": 3, "round": 4}[name]
  assert record["images_per_second"] == pytest.approx(
    16 * updates / record["seconds_per_step"], rel=0.01
  )
  assert record["devices"] == 2
  assert record["compile_seconds"] > 0
  assert record["peak_process_bytes"] > 1e7
  assert record["flops_per_second"] > 0
  assert record["share_of_peak"] is None
  json.dumps(record)


def test_a_round_stores_a_batch_and_learns():
  with jax.set_mesh(make_mesh(1)):
    workload = workloads.make("round", SETTINGS)
    before = jax.device_get(workload.state)
    state, infos = workload.step(workload.state, 0)
  assert int(state.memory.pushed) == int(before.memory.pushed) + 16
  changed = (np.asarray(state.memory.images) != before.memory.images).any(
    (2, 3, 4)
  )
  assert changed.sum() == 16
  assert np.isfinite(infos["distillation"].distance).all()
  assert infos["synthesis"].loss.shape == (2,)
  # The next batch has begun.
  assert np.isinf(state.synthesis.best_loss)


def test_networks_in_bf16_predict_nearly_as_in_f32():
  half = dataclasses.replace(SETTINGS, precision="bf16")
  images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
  logits = {}
  for settings in (SETTINGS, half):
    teacher, _ = workloads.networks(settings)
    x = teacher.spec.normalize(images)
    program = jax.jit(lambda t, x: t.module.apply(t.variables, x, train=False))
    text = program.lower(teacher, x).as_text()
    assert ("bf16" in text) == (settings.precision == "bf16")
    logits[settings.precision] = program(teacher, x)
  np.testing.assert_allclose(logits["f32"], logits["bf16"], atol=0.1)
  made = workloads.make("generator", half).state.synthesis.generator
  assert made.module.dtype == jnp.bfloat16


def test_flops_count_the_arithmetic():
  product = workloads.piece(
    "product", 3, jnp.matmul, jnp.ones((8, 16)), jnp.ones((16, 4))
  )
  assert timing.count_flops([product]) == 3 * 2 * 8 * 16 * 4


@pytest.mark.parametrize("name", ["steps", "batch", "student_steps"])
def test_counts_of_zero_are_refused(name):
  settings = dataclasses.replace(SETTINGS, **{name: 0})
  with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is 0"):
    workloads.make("distill", settings)


def test_a_batch_that_does_not_divide_is_refused():
  settings = dataclasses.replace(SETTINGS, batch=12)
  with (
    jax.set_mesh(make_mesh(8)),
    pytest.raises(UsageError, match="--batch 12 cannot be split over 8"),
  ):
    workloads.make("distill", settings)


def test_peaks_are_found_by_the_whole_name():
  assert peak("NVIDIA H200", "bf16") == 989e12
  assert peak("NVIDIA H100 80GB HBM3", "f32") == 494e12
  assert peak("NVIDIA H100 PCIe", "bf16") == 756e12
  assert peak("TPU v5 lite", "bf16") == 197e12
  assert peak("TPU v5p", "bf16") == 459e12
  assert peak("NVIDIA L40", "bf16") is None
  assert peak("cpu", "f32") is None
