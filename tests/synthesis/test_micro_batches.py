"""Micro-batches: the gradient of the whole batch, in the memory of a part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, statistics
from dfkt_jax.network import placement
from dfkt_jax.synthesis import micro_batches
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from tests.networks import spec, tiny

KEY = jax.random.key(3)
TEACHER = tiny()
# Sorted by brightness, so that the parts differ from the batch.
IMAGES = jnp.sort(jax.random.uniform(KEY, (24, 8, 8, 1)), axis=0)
LABELS = jnp.arange(24) % 10


def averages(images, labels):
  logits, taps = net.statistics(TEACHER, images)
  moments = statistics.moments(taps, TEACHER.batch_stats)
  return moments, classification.cross_entropy(logits, labels).mean()


def loss(averages):
  moments, cross_entropy = averages
  running = TEACHER.batch_stats
  taps = statistics.from_moments(moments, running)
  distance = statistics.norm_distance(taps, running)
  return distance + cross_entropy, distance


def plain(images, labels):
  logits, taps = net.statistics(TEACHER, images)
  distance = statistics.norm_distance(taps, TEACHER.batch_stats)
  cross_entropy = classification.cross_entropy(logits, labels).mean()
  return distance + cross_entropy, distance


@pytest.mark.parametrize("backend", ["cpu", "accelerator"])
@pytest.mark.parametrize("size", [0, 6])
def test_the_gradient_is_that_of_the_whole_batch(monkeypatch, backend, size):
  expected, gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(
    IMAGES, LABELS
  )
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  run = lambda images, labels: micro_batches.value_and_grad(
    loss, averages, images, labels, size
  )
  program = str(jax.make_jaxpr(run)(IMAGES, LABELS))
  assert ("scan" in program) == (backend != "cpu" and size > 0)
  values, ours = jax.jit(run)(IMAGES, LABELS)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  np.testing.assert_allclose(ours, gradient, atol=2e-6)


def test_parts_by_themselves_have_another_gradient():
  own = jax.jit(jax.grad(plain, has_aux=True))
  gradient, _ = own(IMAGES, LABELS)
  cut = (IMAGES.reshape(4, 6, 8, 8, 1), LABELS.reshape(4, 6))
  apart = jnp.stack([own(*part)[0] for part in zip(*cut)])
  error = apart.reshape(IMAGES.shape) / 4 - gradient
  assert np.linalg.norm(error) > 0.3 * np.linalg.norm(gradient)


def test_a_step_in_parts_equals_one_of_the_whole():
  whole = DeepInversion(
    synthesis_batch_size=16,
    first_bn_weight=3.0,
    tv_weight=1e-2,
    l2_weight=0.1,
    competition_weight=2.0,
    image_flip=True,
  )
  parts = dataclasses.replace(whole, micro_batch=4)
  context = Context(teacher=TEACHER, student=tiny(1))
  after = []
  for method in (whole, parts):
    state = method.init(KEY, context)
    after.append(jax.jit(method.step)(KEY, state, context))
  (state, info), (other, other_info) = after
  np.testing.assert_allclose(info, other_info, rtol=1e-5)
  # The first moment of Adam is a tenth of the gradient.
  np.testing.assert_allclose(
    state.opt_state[0].mu, other.opt_state[0].mu, atol=1e-6
  )


def test_parts_are_sharded_without_moving_images():
  method = DeepInversion(synthesis_batch_size=32, micro_batch=16, jitter=0)
  images = []
  for devices in (1, 8):
    mesh = make_mesh(devices)
    with jax.set_mesh(mesh):
      context = Context(teacher=placement.put(TEACHER, mesh))
      state = jax.jit(method.init)(KEY, context)
      step = jax.jit(method.step).lower(KEY, state, context).compile()
      text = step.as_text()
      assert "all-gather" not in text
      assert "all-to-all" not in text
      assert "collective-permute" not in text
      state, _ = step(KEY, state, context)
      assert len(state.images.sharding.device_set) == devices
      assert devices == 1 or not state.images.is_fully_replicated
      images.append(np.asarray(state.images))
  np.testing.assert_allclose(*images, atol=1e-4)


def test_memory_is_that_of_a_part():
  context = Context(teacher=tiny(widths=(16, 16), input_spec=spec(32)))

  def kept(micro_batch):
    method = DeepInversion(synthesis_batch_size=32, micro_batch=micro_batch)
    state = jax.eval_shape(method.init, KEY, context)
    step = jax.jit(method.step).lower(KEY, state, context).compile()
    return step.memory_analysis().temp_size_in_bytes

  assert kept(8) < 0.5 * kept(0)


def test_parts_that_do_not_divide_the_batch_are_refused():
  method = DeepInversion(synthesis_batch_size=16, micro_batch=6)
  with pytest.raises(UsageError, match="--micro-batch is 6"):
    method.init(KEY, Context(teacher=TEACHER))
