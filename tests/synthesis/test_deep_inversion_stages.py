"""Two resolutions: which steps, at which rate, and what begins anew between."""

import dataclasses

import jax
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import image_prior
from dfkt_jax.models import build
from dfkt_jax.synthesis import contract
from dfkt_jax.synthesis.deep_inversion import IMAGENET, DeepInversion
from dfkt_jax.synthesis.pixel_stages import Stage
from tests.networks import spec, tiny

KEY = jax.random.key(9)
TEACHER = tiny()
METHOD = dataclasses.replace(
  IMAGENET,
  synthesis_batch_size=16,
  image_lr=0.1,
  image_warmup=4,
  bn_weight=1.0,
  jitter=1,
)


def run(method, steps, teacher=TEACHER):
  """The states after each stage, and the infos of all steps."""
  state = method.init(KEY, teacher, None)
  states, infos, index = [], [], 0
  for stage, count in contract.stages(method, steps):
    step = jax.jit(stage.step)
    for _ in range(count):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, teacher, None)
      infos.append(info)
      index += 1
    states.append(state)
  return states, infos


def test_released_settings_are_2000_steps_at_half_the_size_and_1000():
  stages = contract.stages(IMAGENET, 3000)
  assert [(s.shrink, steps) for s, steps in stages] == [(2, 2000), (1, 1000)]
  assert [s.first for s, _ in stages] == [0, 2000]


def test_long_stages_are_of_whole_rounds():
  stages = contract.stages(IMAGENET, 2000)
  assert [steps for _, steps in stages] == [1350, 650]


@pytest.mark.parametrize("share", [0.0, 0.3, 2 / 3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_stages_add_up_to_the_steps(share, steps):
  method = dataclasses.replace(METHOD, half_size_share=share)
  stages = contract.stages(method, steps)
  assert sum(count for _, count in stages) == steps
  assert all(count == stage.steps > 0 for stage, count in stages)


def test_the_loss_falls_in_both_stages_which_share_one_state():
  states, infos = run(METHOD, 45)
  first, second = infos[:30], infos[30:]
  assert first[-1].loss < 0.8 * first[0].loss
  assert second[-1].loss < 0.9 * second[0].loss
  begun = METHOD.init(KEY, TEACHER, None)
  for state, steps in zip(states, (30, 45), strict=True):
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, begun)
    assert jax.tree.structure(state) == jax.tree.structure(begun)
    assert state.step == steps
    np.testing.assert_array_equal(state.labels, begun.labels)


def test_half_the_size_is_the_mean_of_squares():
  method = dataclasses.replace(METHOD, jitter=0, image_flip=False)
  state = method.init(KEY, TEACHER, None)
  (stage, _), _ = contract.stages(method, 3)
  _, info = jax.jit(stage.step)(KEY, state, TEACHER, None)
  x = np.asarray(TEACHER.spec.normalise(state.images))
  small = (
    x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
  ) / 4
  assert small.shape[1:3] == (4, 4)
  expected = image_prior.total_variation_l2(small)
  assert info.total_variation == pytest.approx(float(expected), rel=1e-5)
  assert info.l2 == pytest.approx(float(image_prior.l2_norm(small)), rel=1e-5)
  logits = net.logits(TEACHER, TEACHER.spec.denormalise(small))
  log_p = jax.nn.log_softmax(logits)[np.arange(16), state.labels]
  assert info.cross_entropy == pytest.approx(-float(log_p.mean()), rel=1e-4)


@pytest.mark.parametrize(("shrink", "views"), [(1, 5), (2, 3)])
def test_jitter_goes_half_as_far_at_half_the_size(shrink, views):
  method = dataclasses.replace(METHOD, jitter=2, image_flip=False)
  view = lambda key, x: method._view(key, x, shrink)
  pixels = np.arange(1 * 8 * 8, dtype=np.float32).reshape(1, 8, 8, 1)
  seen = jax.jit(jax.vmap(view, in_axes=(0, None)))(
    jax.random.split(KEY, 200), pixels
  )
  rows = np.argmin(np.asarray(seen)[..., 0].min(-1)[:, 0], axis=1)
  assert len(np.unique(rows)) == views


def test_optimiser_and_best_snapshot_begin_anew():
  method = dataclasses.replace(METHOD, bn_weight=0.0, tv_weight=0.1)
  steps = 8
  (first, half), (second, _) = contract.stages(method, steps)
  state = method.init(KEY, TEACHER, None)
  step = jax.jit(first.step)
  for index in range(half):
    key = jax.random.fold_in(KEY, index)
    state, _ = step(key, state, TEACHER, None)
  assert state.opt_state[0].count == half
  assert np.abs(state.opt_state[0].mu).max() > 0
  # As if the pixels so far were those a run begins with.
  anew = method.init(KEY, TEACHER, None)
  anew = anew._replace(images=state.images, step=state.step)
  after, info = jax.jit(second.step)(KEY, state, TEACHER, None)
  expected, _ = jax.jit(second.step)(KEY, anew, TEACHER, None)
  for one, other in zip(
    jax.tree.leaves(after._replace(best_images=expected.best_images)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  assert after.best_loss == info.loss
  np.testing.assert_array_equal(after.best_images, state.images)


def test_rates_rise_and_fall_in_each_stage():
  method = dataclasses.replace(METHOD, image_lr=0.5, image_warmup=5)
  for stage, steps in contract.stages(method, 75):
    rates = np.array([float(stage.rate(k)) for k in range(steps)])
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    halfway = 5 + (steps - 5) // 2
    assert rates[halfway] == pytest.approx(0.25, abs=0.02)
    assert (np.diff(rates[5:]) < 0).all()
    assert 0 < rates[-1] < 0.01
  constant = Stage(DeepInversion(image_lr=0.5))
  assert float(constant.rate(123_456)) == 0.5


def test_steps_of_stages_are_refused_where_nobody_counts_them():
  state = METHOD.init(KEY, TEACHER, None)
  with pytest.raises(UsageError, match="stages"):
    METHOD.step(KEY, state, TEACHER, None)


def test_networks_of_one_size_are_refused():
  lenet = net.init(KEY, build("lenet5", 10), spec(28))
  method = dataclasses.replace(METHOD, bn_weight=0.0)
  with pytest.raises(UsageError, match="half of 28x28"):
    method.init(KEY, lenet, None)
  odd = tiny(input_spec=spec(9))
  with pytest.raises(UsageError, match="half of 9x9"):
    METHOD.init(KEY, odd, None)
