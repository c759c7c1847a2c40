"""CoWA's labels, weights and loss against plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from dfkt_jax.adaptation.cowa import CoWA
from dfkt_jax.contracts import Batch, Predictions
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.networks import tiny

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
RECIPE = dataclasses.replace(CoWA.recipe, steps=10, weight_decay=0.0)


def blobs(rows=60, padding=4):
  """Return predictions for three clusters by a classifier that misses them.

  Returns:
    Predictions, and i32[rows] the clusters.
  """
  rng = np.random.default_rng(1)
  labels = rng.integers(3, size=rows)
  centers = 3.0 * np.eye(3, 4)
  features = centers[labels] + 0.6 * rng.normal(size=(rows, 4)) + 1.0
  turned = features @ (np.eye(4, 3) + 0.8 * np.roll(np.eye(4, 3), 1, 0))
  logits = 0.7 * (turned - turned.mean(1, keepdims=True))
  strange = lambda width: 9.0 * rng.normal(size=(padding, width))
  together = lambda x: np.concatenate([x, strange(x.shape[1])])
  valid = np.arange(rows + padding) < rows
  wide = [jnp.asarray(together(x), jnp.float32) for x in (features, logits)]
  return Predictions(*wide, jnp.asarray(valid)), labels


def by_hand(predictions, epsilon):
  valid = predictions.valid
  f = np.asarray(predictions.features, np.float64)[valid]
  f /= np.linalg.norm(f, axis=1, keepdims=True)
  p = special.softmax(np.asarray(predictions.logits, np.float64), 1)[valid]

  def joint(r, s):
    columns = []
    for own, wide in zip(r.T, s.T):
      mean = own @ f / own.sum()
      covariance = (wide[:, None] * (f - mean)).T @ (f - mean) / wide.sum()
      covariance += epsilon * np.eye(f.shape[1])
      gaussian = stats.multivariate_normal(mean, covariance)
      columns.append(np.log(own.mean()) + gaussian.logpdf(f))
    return np.stack(columns, 1)

  g = special.softmax(joint(p, np.ones_like(p)), 1)
  log_g = special.log_softmax(joint(g, g), 1)
  labels = log_g.argmax(1)
  ordered = np.sort(log_g, 1)
  gap = ordered[:, -1] - ordered[:, -2]
  return labels, gap / gap.max() * p[np.arange(len(p)), labels]


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_labels_and_weights_by_hand(epsilon):
  predictions, _ = blobs()
  labels, weights = CoWA(epsilon=epsilon).label(predictions)
  expected = by_hand(predictions, epsilon)
  np.testing.assert_array_equal(labels[:60], expected[0])
  np.testing.assert_allclose(weights[:60], expected[1], rtol=2e-2, atol=1e-4)
  assert (weights >= 0).all() and (weights <= 1).all()


def test_labels_come_from_the_mixture_instead_of_the_classifier():
  predictions, truth = blobs()
  labels, _ = CoWA(epsilon=1e-3).label(predictions)
  right = (np.asarray(labels[:60]) == truth).mean()
  assert right > 0.9
  assert (np.asarray(predictions.logits[:60]).argmax(1) == truth).mean() < 0.9


@pytest.mark.parametrize("kind", ["constant", "one class", "few"])
def test_weights_are_finite_where_a_mixture_cannot_be_fitted(kind):
  predictions, _ = blobs()
  if kind == "constant":
    ones = jnp.ones_like(predictions.features)
    predictions = predictions.replace(features=ones)
  if kind == "one class":
    logits = jnp.zeros((64, 3)).at[:, 1].set(200.0)
    predictions = predictions.replace(logits=logits)
  if kind == "few":
    valid = predictions.valid & (jnp.arange(64) < 2)
    predictions = predictions.replace(valid=valid)
  labels, weights = CoWA().label(predictions)
  assert np.isfinite(weights).all()
  assert (labels >= 0).all() and (labels < 3).all()


LOGITS = RNG.normal(size=(4, 3)).astype(np.float32)
TARGETS = RNG.dirichlet(np.ones(3), 4).astype(np.float32)
WEIGHTS = np.array([0.5, 0.0, 1.0, 0.2], np.float32)


def test_the_loss_by_hand_and_its_warmup():
  each = -(TARGETS * special.log_softmax(LOGITS, 1)).sum(1)
  expected = (WEIGHTS * each).mean()
  info = CoWA().loss(LOGITS, TARGETS, WEIGHTS, 0)
  assert info.loss == pytest.approx(expected, rel=1e-4)
  assert info.cross_entropy == pytest.approx(each.mean(), rel=1e-4)
  waits = CoWA(warmup=2)
  for epoch, factor in ((0, 1e-6), (1, 1e-6), (2, 1.0)):
    loss = waits.loss(LOGITS, TARGETS, WEIGHTS, epoch).loss
    assert loss == pytest.approx(factor * expected, rel=1e-4)


def ready(method, recipe=RECIPE):
  pixels = RNG.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
  predictions = make_predict_all(pixels, make_mesh(1))(tiny())
  begin = context(recipe, tiny(), predictions)
  state = jax.jit(method.init)(KEY, begin)
  images = jnp.asarray(pixels, jnp.float32) / 255
  batch = Batch(images, rows=jnp.arange(8))
  return state, predictions, context(recipe, tiny(), batch=batch)


def test_epochs_are_counted_and_labels_made_anew():
  method = CoWA(epsilon=1e-3)
  state, predictions, _ = ready(method)
  turned = predictions.replace(logits=jnp.roll(predictions.logits, 1, 1))
  again = method.relabel(KEY, state, context(RECIPE, tiny(), turned))
  assert (state.epoch, again.epoch) == (0, 1)
  np.testing.assert_array_equal(again.labels, method.label(turned)[0])
  assert (again.labels != state.labels).any()


def test_a_step_uses_the_weights_of_the_state():
  method = CoWA(mixup_alpha=1.0)
  state, _, here = ready(method)
  step = jax.jit(method.step)
  take = lambda weights: step(KEY, state._replace(weights=weights), here)[1]
  none, all_ = take(jnp.zeros(8)), take(jnp.ones(8))
  assert none.loss == 0.0
  # Weights that are all 1 stay so when they are mixed.
  assert all_.weight == pytest.approx(1.0)
  assert all_.loss == pytest.approx(float(all_.cross_entropy), rel=1e-4)


def test_steps_decrease_the_loss_while_labels_and_weights_stay():
  method = CoWA(mixup_alpha=0.01, epsilon=1e-2)
  recipe = dataclasses.replace(RECIPE, lr=0.05, backbone_rate=1.0)
  state, _, here = ready(method, recipe)
  step = jax.jit(method.step)
  losses = []
  for index in range(10):
    state, info = step(jax.random.fold_in(KEY, index), state, here)
    losses.append(float(info.loss))
  assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
