"""DFND's learner: its matrix and its loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context, unlabelled
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.recipe import Recipe
from tests.networks import tiny

KEY = jax.random.key(8)
IMAGES = jax.random.uniform(KEY, (16, 8, 8, 1))


def test_the_transition_is_row_stochastic():
  noise = jax.random.normal(KEY, (4, 4))
  q = np.asarray(NoiseAdaptation(assumed_accuracy=0.9).transition(noise))
  np.testing.assert_allclose(q.sum(1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(q.diagonal(), 0.9)
  off = np.exp(np.asarray(noise)[0, 1:])
  np.testing.assert_allclose(q[0, 1:], 0.1 * off / off.sum(), rtol=1e-5)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_noisy_label_term_is_the_equation(labelled):
  teacher, student = tiny(), tiny(1)
  learner = NoiseAdaptation(KD(lr=0.02, temperature=2.0))
  batch = unlabelled(IMAGES)
  labels = np.asarray(net.logits(teacher, IMAGES).argmax(1))
  if labelled:
    # Every second image has a label of its own.
    labels = np.where(np.arange(16) % 2, 3, labels)
    batch = Batch(IMAGES, jnp.where(jnp.arange(16) % 2, 3, -1))
  context = Context(teacher=teacher, batch=batch, recipe=Recipe(steps=12))
  state = learner.init(KEY, student, context)
  after, info = jax.jit(learner.step)(KEY, state, context)
  logits, _ = net.train_logits(student, IMAGES, KEY)
  p = np.asarray(jax.nn.softmax(logits) @ learner.transition(state.noise))
  expected = -np.log(p[np.arange(16), labels]).mean()
  assert info.noisy_label == pytest.approx(float(expected), rel=1e-3)
  assert (np.asarray(after.noise) != 0).any()


def test_it_can_be_switched_off():
  context = Context(
    teacher=tiny(), batch=unlabelled(IMAGES), recipe=Recipe(steps=12)
  )
  settings = KD(lr=0.02)
  learner = NoiseAdaptation(settings, noise_weight=0.0)
  state = learner.init(KEY, tiny(1), context)
  state, _ = jax.jit(learner.step)(KEY, state, context)
  plain = settings.init(KEY, tiny(1), context)
  plain, _ = jax.jit(settings.step)(KEY, plain, context)
  assert not np.asarray(state.noise).any()
  for a, b in zip(
    jax.tree.leaves(learner.student(state)), jax.tree.leaves(plain.student)
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
