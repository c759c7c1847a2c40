"""Two sizes of pixels: the steps and rates of the stages, and the restart."""

import dataclasses

import jax
import numpy as np
import pytest

from dfkt_jax import contracts
from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import image_prior
from dfkt_jax.models import build
from dfkt_jax.synthesis import schedules
from dfkt_jax.synthesis.deep_inversion import IMAGENET, DeepInversion
from tests.networks import spec, tiny

KEY = jax.random.key(9)
TEACHER = tiny()
CONTEXT = Context(teacher=TEACHER)
METHOD = dataclasses.replace(
  IMAGENET,
  synthesis_batch_size=16,
  image_lr=0.1,
  image_warmup=4,
  bn_weight=1.0,
  jitter=1,
)


def run(method, steps):
  """Return the states after each stage, and the infos of all steps."""
  state = method.init(KEY, CONTEXT)
  states, infos, index = [], [], 0
  for step, count in contracts.step_functions(method, steps):
    step = jax.jit(step)
    for _ in range(count):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, CONTEXT)
      infos.append(info)
      index += 1
    states.append(state)
  return states, infos


def test_released_settings_are_2000_steps_at_half_the_size_and_1000():
  stages = contracts.step_functions(IMAGENET, 3000)
  settings = [step.keywords for step, _ in stages]
  assert [steps for _, steps in stages] == [2000, 1000]
  assert [setting["shrink"] for setting in settings] == [2, 1]
  assert [setting["first"] for setting in settings] == [0, 2000]


def test_long_stages_are_whole_rounds():
  stages = contracts.step_functions(IMAGENET, 2000)
  assert [steps for _, steps in stages] == [1350, 650]


@pytest.mark.parametrize("share", [0.0, 0.3, 2 / 3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_stages_add_up_to_the_steps(share, steps):
  method = dataclasses.replace(METHOD, half_size_share=share)
  stages = contracts.step_functions(method, steps)
  assert sum(count for _, count in stages) == steps
  assert all(count == step.keywords["steps"] > 0 for step, count in stages)


def test_the_loss_falls_in_both_stages_which_share_one_state():
  states, infos = run(METHOD, 45)
  first, second = infos[:30], infos[30:]
  assert first[-1].loss < 0.8 * first[0].loss
  assert second[-1].loss < 0.9 * second[0].loss
  begun = METHOD.init(KEY, CONTEXT)
  for state, steps in zip(states, (30, 45), strict=True):
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, begun)
    assert jax.tree.structure(state) == jax.tree.structure(begun)
    assert state.step == steps
    np.testing.assert_array_equal(state.labels, begun.labels)


def test_half_the_size_is_the_mean_of_squares():
  method = dataclasses.replace(METHOD, jitter=0, image_flip=False)
  state = method.init(KEY, CONTEXT)
  (step, _), _ = contracts.step_functions(method, 3)
  _, info = jax.jit(step)(KEY, state, CONTEXT)
  x = np.asarray(TEACHER.spec.normalize(state.images))
  small = (
    x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
  ) / 4
  assert small.shape[1:3] == (4, 4)
  expected = image_prior.total_variation_l2(small)
  assert info.total_variation == pytest.approx(float(expected), rel=1e-5)
  l2 = float(image_prior.l2_norm(small).mean())
  assert info.l2 == pytest.approx(l2, rel=1e-5)
  logits = net.logits(TEACHER, TEACHER.spec.denormalize(small))
  log_p = jax.nn.log_softmax(logits)[np.arange(16), state.labels]
  assert info.cross_entropy == pytest.approx(-float(log_p.mean()), rel=1e-4)


@pytest.mark.parametrize(("shrink", "views"), [(1, 5), (2, 3)])
def test_jitter_is_half_as_far_at_half_the_size(shrink, views):
  method = dataclasses.replace(METHOD, jitter=2, image_flip=False)
  view = lambda key, x: method.view(key, x, shrink)
  pixels = np.arange(1 * 8 * 8, dtype=np.float32).reshape(1, 8, 8, 1)
  seen = jax.jit(jax.vmap(view, in_axes=(0, None)))(
    jax.random.split(KEY, 200), pixels
  )
  rows = np.argmin(np.asarray(seen)[..., 0].min(-1)[:, 0], axis=1)
  assert len(np.unique(rows)) == views


def test_optimizer_and_best_snapshot_restart():
  method = dataclasses.replace(METHOD, bn_weight=0.0, tv_weight=0.1)
  steps = 8
  (first, half), (second, _) = contracts.step_functions(method, steps)
  state = method.init(KEY, CONTEXT)
  step = jax.jit(first)
  for index in range(half):
    key = jax.random.fold_in(KEY, index)
    state, _ = step(key, state, CONTEXT)
  assert state.opt_state[0].count == half
  assert np.abs(state.opt_state[0].mu).max() > 0
  # As if a run began with the pixels so far.
  anew = method.init(KEY, CONTEXT)
  anew = anew._replace(images=state.images, step=state.step)
  step = jax.jit(second)
  after, info = step(KEY, state, CONTEXT)
  expected, _ = step(KEY, anew, CONTEXT)
  for one, other in zip(
    jax.tree.leaves(after._replace(best_images=expected.best_images)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  assert after.best_loss == info.loss
  np.testing.assert_array_equal(after.best_images, state.images)


def test_rates_rise_and_fall_in_each_stage():
  for _, steps in contracts.step_functions(METHOD, 75):
    rate = schedules.warmup(0.5, 5, steps, METHOD.image_schedule)
    rates = np.array([float(rate(k)) for k in range(steps)])
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    halfway = 5 + (steps - 5) // 2
    assert rates[halfway] == pytest.approx(0.25, abs=0.02)
    assert (np.diff(rates[5:]) < 0).all()
    assert 0 < rates[-1] < 0.01
  constant = schedules.warmup(0.5, 0, 1, DeepInversion().image_schedule)
  assert float(constant(123_456)) == 0.5


def test_both_stages_have_the_rates_of_the_schedule():
  # With both betas at 0 Adam moves every pixel by the rate.
  method = dataclasses.replace(
    METHOD, image_lr=0.4, clip=False, beta1=0.0, beta2=0.0
  )
  stages = contracts.step_functions(method, 18)
  assert [count for _, count in stages] == [12, 6]
  state = method.init(KEY, CONTEXT)
  for step, count in stages:
    step = jax.jit(step)
    rate = schedules.warmup(0.4, 4, count, "cosine")
    for index in range(count):
      before = TEACHER.spec.normalize(state.images)
      state, _ = step(jax.random.fold_in(KEY, index), state, CONTEXT)
      moved = np.abs(TEACHER.spec.normalize(state.images) - before)
      assert np.median(moved) == pytest.approx(float(rate(index)), rel=1e-2)


PRESETS = {
  "two sizes": METHOD,
  "one size": DeepInversion(synthesis_batch_size=16),
  "one size, cosine": dataclasses.replace(METHOD, half_size_share=0.0),
  "half size only": dataclasses.replace(METHOD, half_size_share=1.0),
}


@pytest.mark.parametrize("backend", ["cpu", "accelerator"])
@pytest.mark.parametrize("name", PRESETS)
def test_step_by_step_equals_the_stages(monkeypatch, backend, name):
  method, steps = PRESETS[name], 7
  states, infos = run(method, steps)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  context = CONTEXT._replace(recipe=Recipe(synthesis_steps=steps))
  state = method.init(KEY, context)
  step = jax.jit(method.step)
  program = str(jax.make_jaxpr(method.step)(KEY, state, context))
  two_sizes = len(contracts.step_functions(method, steps)) == 2
  assert ("cond[" in program) == (two_sizes and backend != "cpu")
  # In one program XLA adds up in another order than in two.
  rtol, atol = (1e-5, 1e-5) if two_sizes else (0.0, 0.0)
  for index, expected in enumerate(infos):
    state, info = step(jax.random.fold_in(KEY, index), state, context)
    np.testing.assert_allclose(info, expected, rtol=rtol)
  for one, other in zip(
    jax.tree.leaves(state), jax.tree.leaves(states[-1]), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def test_a_step_without_a_recipe_has_the_steps_of_the_paper():
  method = dataclasses.replace(METHOD, jitter=0, image_flip=False)
  (at_half, count), (at_full, _) = method.stages(method.recipe.synthesis_steps)
  assert count == 1350
  begun = method.init(KEY, CONTEXT)
  step = jax.jit(method.step)
  for number, stage in ((count - 1, at_half), (count, at_full)):
    state = begun._replace(step=jax.numpy.int32(number))
    _, info = step(KEY, state, CONTEXT)
    _, expected = jax.jit(stage)(KEY, state, CONTEXT)
    np.testing.assert_allclose(info, expected, rtol=1e-6)


def test_networks_of_one_size_are_refused():
  lenet = net.init(KEY, build("lenet5", 10), spec(28))
  method = dataclasses.replace(METHOD, bn_weight=0.0)
  with pytest.raises(UsageError, match="half of 28x28"):
    method.init(KEY, Context(teacher=lenet))
  odd = tiny(input_spec=spec(9))
  with pytest.raises(UsageError, match="half of 9x9"):
    METHOD.init(KEY, Context(teacher=odd))
