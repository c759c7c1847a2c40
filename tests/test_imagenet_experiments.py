"""experiments/imagenet.py, as far as it goes without an ImageNet network."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dfkt_jax import teachers
from dfkt_jax.commands import experiments
from dfkt_jax.driver import RunOptions
from dfkt_jax.models import generator
from dfkt_jax.synthesis import contract
from tests.networks import spec, tiny

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def found():
  module = Path(__file__).parents[1] / "experiments" / "imagenet.py"
  return experiments.find(str(module))


@pytest.fixture(scope="module")
def teacher():
  return tiny(widths=(16, 32, 64), input_spec=spec(16, channels=3))


def test_dfqs_generator_makes_224_pixels(found):
  method = found["dfq_lite0_to_mobilenet_v2"].method
  network = jax.eval_shape(
    lambda key: generator.init(
      key, (224, 224, 3), method.generator_widths, method.latent
    ),
    KEY,
  )
  images = jax.eval_shape(
    lambda key, network: generator.sample(key, network, 2), KEY, network
  )
  assert images.shape == (2, 224, 224, 3)
  assert network.params["linear"]["kernel"].shape == (256, 14 * 14 * 128)


def test_dfq_smoke_goes_through_on_a_small_network(found, teacher, tmp_path):
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
  state = smoke.method.init(KEY, teacher, None)
  stages = contract.stages(smoke.method, smoke.steps)
  assert [steps for _, steps in stages] == [6, 3]
  for stage, steps in stages:
    step = jax.jit(stage.step)
    losses = []
    for index in range(steps):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, teacher, None)
      losses.append(float(info.loss))
    assert losses[-1] < losses[0]
  images = smoke.method.sample(KEY, state, smoke.num_images).images
  assert images.shape == (4, 16, 16, 3)
  assert np.ptp(images) > 0.1
