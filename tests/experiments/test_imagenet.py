"""experiments/imagenet.py, as far as possible without an ImageNet network."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dfkt_jax import contracts, teachers
from dfkt_jax.commands import experiments
from dfkt_jax.contracts import Context
from dfkt_jax.models import generator
from dfkt_jax.runs.driver import RunOptions
from tests.networks import spec, tiny

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def found():
  module = Path(__file__).parents[2] / "experiments" / "imagenet.py"
  return experiments.find(str(module))


@pytest.fixture(scope="module")
def teacher():
  return tiny(widths=(16, 32, 64), input_spec=spec(16, channels=3))


def test_dfqs_generator_makes_224_pixels(found):
  source = found["dfq_lite0_to_mobilenet_v2"].source
  network = jax.eval_shape(
    lambda key: generator.init(
      key, (224, 224, 3), source.generator_widths, source.latent
    ),
    KEY,
  )
  images = jax.eval_shape(
    lambda key, network: generator.sample(key, network, 2), KEY, network
  )
  assert images.shape == (2, 224, 224, 3)
  assert network.params["linear"]["kernel"].shape == (256, 14 * 14 * 128)


def test_dfq_smoke_runs_with_a_small_network(found, teacher, tmp_path):
  network = jax.device_get(teacher)
  card = teachers.describe(network, "convnet-half")
  teachers.save(tmp_path / "t", network, card)
  smoke = dataclasses.replace(
    found["dfq_smoke"], teacher=tmp_path / "t", student="convnet-half"
  )
  result = smoke.run(RunOptions(tmp_path / "w", mesh="data=1"))
  assert result["steps"] == 4
  assert (tmp_path / "w" / "student").is_dir()


def test_inversion_smoke_has_both_sizes_in_parts(found, teacher):
  smoke = found["deep_inversion_smoke"]
  context = Context(teacher=teacher)
  state = smoke.method.init(KEY, context)
  stages = contracts.step_functions(smoke.method, smoke.steps)
  assert [steps for _, steps in stages] == [6, 3]
  for stage_step, steps in stages:
    step = jax.jit(stage_step)
    losses = []
    for index in range(steps):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, context)
      losses.append(float(info.loss))
    assert losses[-1] < losses[0]
  images = smoke.method.sample(KEY, state, smoke.num_images).images
  assert images.shape == (4, 16, 16, 3)
  assert np.ptp(images) > 0.1
