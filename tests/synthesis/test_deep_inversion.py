"""DeepInversion: its loss by hand, and the effect of its steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, image_prior
from dfkt_jax.models import build
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from tests.networks import spec, tiny

KEY = jax.random.key(7)
METHOD = DeepInversion(
  synthesis_batch_size=32, jitter=0, tv_weight=1e-3, image_lr=0.1
)


def run(method, steps, teacher, student=None):
  context = Context(teacher=teacher, student=student)
  state = method.init(KEY, context)
  step = jax.jit(method.step)
  infos = []
  for index in range(steps):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, context)
    infos.append(info)
  return state, infos


def test_loss_terms_are_the_equations():
  teacher, student = tiny(), tiny(1)
  method = dataclasses.replace(
    METHOD,
    class_weight=0.7,
    bn_weight=3.0,
    first_bn_weight=5.0,
    l2_weight=0.01,
    competition_weight=2.0,
  )
  context = Context(teacher=teacher, student=student)
  state = method.init(KEY, context)
  _, info = jax.jit(method.step)(KEY, state, context)

  x = teacher.spec.normalize(state.images)
  logits, taps = net.statistics(teacher, state.images)
  running = teacher.batch_stats
  norm = lambda layer, name: np.linalg.norm(
    taps[layer][name] - running[layer][name]
  )
  bn = 5.0 * (norm("bn1", "mean") + norm("bn1", "var"))
  bn += norm("bn2", "mean") + norm("bn2", "var")
  divergence = classification.jensen_shannon(
    logits, net.logits(student, state.images), 3.0
  ).mean()
  expected = (
    0.7 * classification.cross_entropy(logits, state.labels).mean()
    + 3.0 * bn
    + 1e-3 * image_prior.total_variation_l2(x)
    + 0.01 * image_prior.l2_norm(x).mean()
    + 2.0 * (1 - divergence)
  )
  assert info.loss == pytest.approx(float(expected), rel=1e-5)
  assert info.bn_distance == pytest.approx(float(bn), rel=1e-5)


def test_steps_decrease_every_term_they_should():
  method = dataclasses.replace(METHOD, bn_weight=1.0)
  _, infos = run(method, 60, tiny())
  assert infos[-1].loss < 0.6 * infos[0].loss
  assert infos[-1].bn_distance < 0.7 * infos[0].bn_distance
  assert infos[-1].cross_entropy < 0.7 * infos[0].cross_entropy


def test_labels_are_balanced():
  state = METHOD.init(KEY, Context(teacher=tiny()))
  counts = np.bincount(state.labels, minlength=10)
  assert counts.min() >= 3
  assert counts.max() <= 4


def test_competition_raises_disagreement_with_the_student():
  teacher, student = tiny(), tiny(1)
  plain = dataclasses.replace(METHOD, class_weight=0.0, bn_weight=0.1)
  adaptive = dataclasses.replace(plain, competition_weight=10.0)
  disagreement = {}
  for method in (plain, adaptive):
    state, _ = run(method, 60, teacher, student)
    images = method.sample(KEY, state, 32).images
    disagreement[method] = float(
      classification.jensen_shannon(
        net.logits(teacher, images), net.logits(student, images), 3.0
      ).mean()
    )
  assert disagreement[adaptive] > 1.2 * disagreement[plain]


def test_best_snapshot_is_of_the_lowest_loss_and_not_an_alias():
  method = dataclasses.replace(METHOD, image_lr=2.0)  # too high: loss jumps
  teacher = tiny()
  state, infos = run(method, 12, teacher)
  assert state.best_loss == min(info.loss for info in infos)
  assert not np.array_equal(state.best_images, state.images)
  last = dataclasses.replace(method, best_snapshot=False)
  np.testing.assert_array_equal(
    last.sample(KEY, state, 32).images, np.clip(state.images, 0, 1)
  )


def test_clip_keeps_pixels_in_the_box():
  method = dataclasses.replace(METHOD, clip=True, image_lr=1.0)
  state, _ = run(method, 3, tiny())
  assert state.images.min() >= 0
  assert state.images.max() <= 1


@pytest.mark.parametrize("jitter_each", [False, True])
def test_jitter_and_flip_change_the_view_not_the_images(jitter_each):
  teacher = tiny()
  moving = dataclasses.replace(
    METHOD, jitter=2, image_flip=True, jitter_each=jitter_each, image_lr=0.0
  )
  context = Context(teacher=teacher)
  state = moving.init(KEY, context)
  step = jax.jit(moving.step)
  losses = {
    float(step(jax.random.key(k), state, context)[1].loss) for k in range(4)
  }
  assert len(losses) > 1
  after, _ = step(KEY, state, context)
  np.testing.assert_allclose(after.images, state.images, atol=1e-6)


def test_a_teacher_without_batch_norm_is_refused_unless_the_term_is_off():
  lenet = net.init(KEY, build("lenet5", 10), spec(28))
  with pytest.raises(UsageError, match="--bn-weight 0"):
    METHOD.init(KEY, Context(teacher=lenet))
  plain = dataclasses.replace(METHOD, bn_weight=0.0)
  state, infos = run(plain, 5, lenet)
  assert infos[-1].loss < infos[0].loss


def test_competition_without_a_student_is_refused():
  method = dataclasses.replace(METHOD, competition_weight=1.0)
  with pytest.raises(UsageError, match="--student"):
    method.init(KEY, Context(teacher=tiny()))


def test_steps_are_pure_enough_for_pmap():
  context = Context(teacher=tiny())

  def first_step(seed):
    key = jax.random.key(seed)
    state = METHOD.init(key, context)
    return METHOD.step(key, state, context)[1].loss

  losses = jax.pmap(first_step)(jnp.arange(2))
  assert losses[1] == pytest.approx(float(jax.jit(first_step)(1)), rel=1e-4)
