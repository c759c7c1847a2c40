"""Virtual adversarial training: the direction, its length and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.losses import vat
from tests.networks import tiny

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))


def predict(images):
  return net.logits(tiny(), images)


def lengths(r):
  return np.linalg.norm(np.asarray(r).reshape(len(r), -1), axis=1)


@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_every_image_moves_by_the_radius(radius):
  r = vat.perturbation(KEY, predict, IMAGES, radius)
  np.testing.assert_allclose(lengths(r), radius, rtol=1e-4)


def test_the_direction_raises_the_divergence_more_than_random_ones():
  log_p = jax.nn.log_softmax(predict(IMAGES))

  @jax.jit
  def divergences(r):
    log_q = jax.nn.log_softmax(predict(IMAGES + r))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(1)

  found = divergences(vat.perturbation(KEY, predict, IMAGES, 0.5))
  draws = []
  for key in jax.random.split(jax.random.key(2), 20):
    r = jax.random.normal(key, IMAGES.shape)
    draws.append(divergences(0.5 * r / lengths(r)[:, None, None, None]))
  # Higher for each image than all of its twenty random directions.
  assert (found > np.max(draws, axis=0)).all()
  assert (found > 3.0 * np.mean(draws, axis=0)).all()


def test_the_direction_of_a_linear_classifier_is_normal_to_the_boundary():
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)))
  linear = lambda x: 0.1 * x.reshape(len(x), -1) @ weights
  normal = np.array(weights[:, 0] - weights[:, 1])
  normal /= np.linalg.norm(normal)
  r = vat.perturbation(KEY, linear, IMAGES, 1.0)
  along = np.abs(np.asarray(r).reshape(6, -1) @ normal)
  np.testing.assert_allclose(along, 1.0, rtol=1e-3)


def test_a_sure_prediction_has_a_direction_too():
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)))
  sure = lambda x: x.reshape(len(x), -1) @ weights + jnp.array([[40.0, 0.0]])
  p = jax.nn.softmax(sure(IMAGES))
  assert p.max(1).min() == 1.0
  r = vat.perturbation(KEY, sure, IMAGES, 1.0)
  np.testing.assert_allclose(lengths(r), 1.0, rtol=1e-4)


def test_a_constant_classifier_has_no_direction_and_no_loss():
  constant = lambda x: jnp.zeros((len(x), 3)) + 0.0 * x.sum()
  r = vat.perturbation(KEY, constant, IMAGES, 1.0)
  np.testing.assert_array_equal(r, 0.0)
  loss = lambda x: vat.loss(constant, x, r, constant(x))
  np.testing.assert_array_equal(loss(IMAGES), np.zeros(len(IMAGES)))
  gradient = jax.grad(lambda x: loss(x).mean())(IMAGES)
  assert np.isfinite(gradient).all()


def test_only_the_moved_prediction_has_a_gradient():
  rng = np.random.default_rng(3)
  x, r = rng.normal(size=(2, 4, 5))
  weights = rng.normal(size=(5, 3))

  def loss(w):
    linear = lambda x: x @ w
    images = jnp.asarray(x, jnp.float32)
    return vat.loss(linear, images, jnp.asarray(r), linear(images)).mean()

  softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
  p, q = softmax(x @ weights), softmax((x + r) @ weights)
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(weights))
  expected = (p * (np.log(p) - np.log(q))).sum(1).mean()
  assert value == pytest.approx(float(expected), rel=1e-4)
  np.testing.assert_allclose(gradient, (x + r).T @ (q - p) / 4, rtol=1e-3)
