"""ZSKD: class similarity, both concentrations, and images of the labels."""

import jax
import numpy as np
import pytest

from dfkt_jax.contracts import Context
from dfkt_jax.rounds import distil
from dfkt_jax.synthesis import zskd
from dfkt_jax.synthesis.target_fitting import TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD
from tests.networks import tiny

KEY = jax.random.key(6)


def probabilities(method, teacher):
  logits = jax.jit(method.soft_labels)(KEY, teacher)
  return np.asarray(jax.nn.softmax(logits / method.fitting.target_temperature))


def test_class_similarity_is_the_scaled_cosine():
  teacher = tiny()
  w = np.asarray(teacher.params["linear"]["kernel"], np.float64)
  w /= np.linalg.norm(w, axis=0)
  cosine = w.T @ w
  expected = (cosine - cosine.min()) / (1.0 - cosine.min())
  similarity = zskd.class_similarity(teacher)
  np.testing.assert_allclose(similarity, expected, atol=1e-5)


def test_labels_have_the_mean_of_their_dirichlets():
  teacher = tiny()
  method = ZSKD(synthesis_batch_size=40_000, betas=(1.0,))
  similarity = np.asarray(zskd.class_similarity(teacher)) + 1e-4
  expected = (similarity / similarity.sum(1, keepdims=True)).mean(0)
  mean = probabilities(method, teacher).mean(0)
  np.testing.assert_allclose(mean, expected, atol=0.01)


def test_both_concentrations_act():
  y = probabilities(ZSKD(synthesis_batch_size=2000), tiny())
  entropy = -(y * np.log(y + 1e-12)).sum(1)
  # A tenth of the concentration: labels are nearly one-hot.
  assert entropy[1::2].mean() < 0.5 * entropy[0::2].mean()


def test_steps_bring_the_images_to_their_labels():
  teacher = tiny()
  method = ZSKD(
    synthesis_batch_size=32,
    fitting=TargetFitting(target_temperature=4.0, image_lr=0.05),
  )
  context = Context(teacher=teacher)
  state = method.init(KEY, context)
  step = jax.jit(method.step)
  before = np.asarray(state.soft_labels)
  infos = []
  for index in range(60):
    state, info = step(jax.random.fold_in(KEY, index), state, context)
    infos.append(info)
  assert infos[-1].divergence < 0.85 * infos[0].divergence
  assert infos[-1].agreement > infos[0].agreement
  np.testing.assert_array_equal(state.soft_labels, before)


def test_the_recipe_learns_from_stored_labels():
  assert ZSKD.recipe.offline
  assert ZSKD.learner.target == "stored"
  assert distil.warmup_rounds(ZSKD(), ZSKD.recipe) == pytest.approx(240)
