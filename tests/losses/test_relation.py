"""Relations of a batch against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import relation

X, Y = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_info_nce_is_the_share_of_ones_own_key():
  z, t = unit(X), unit(Y)
  odds = np.exp(z @ t.T / 0.5)
  expected = -np.log(odds.diagonal() / odds.sum(1)).mean()
  loss = relation.info_nce(jnp.asarray(z), jnp.asarray(t), 0.5)
  assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("x", "y"), [(X, X), (X, Y)])
def test_distances_are_over_their_mean(x, y):
  plain = np.linalg.norm(x[:, None] - y[None], axis=-1)
  expected = plain / plain[plain > 1e-6].mean()
  answer = relation.distances(jnp.asarray(x), jnp.asarray(y))
  np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_angles_are_cosines_at_the_vertex():
  answer = relation.angles(jnp.asarray(X), jnp.asarray(Y))
  a, b = X[1] - Y[2], X[4] - Y[2]
  assert answer[2, 1, 4] == pytest.approx(float(unit(a) @ unit(b)), rel=1e-4)
  same = relation.angles(jnp.asarray(X), jnp.asarray(X))
  assert same[1, 1, 3] == 0.0


def test_huber_is_quadratic_then_linear():
  x = jnp.array([0.5, 3.0])
  expected = (0.5 * 0.25 + 2.5) / 2
  assert relation.huber(x, jnp.zeros(2)) == pytest.approx(expected)


def test_gradients_are_finite_where_two_examples_are_one():
  twins = jnp.asarray(np.repeat(X[:1], 3, axis=0))

  def loss(x):
    z = relation.normalise(x)
    return relation.distances(z, z).sum() + relation.angles(z, z).sum()

  assert np.isfinite(jax.grad(loss)(twins)).all()


def test_channels_compares_normalised_products_by_hand():
  a, b = np.random.default_rng(1).normal(size=(2, 2, 3, 2, 4)).astype("f4")
  total = 0.0
  for x, y in zip(a.reshape(2, 6, 4), b.reshape(2, 6, 4)):
    total += np.square(unit(x.T @ x) - unit(y.T @ y)).sum() / 4
  answer = relation.channels(jnp.asarray(a), jnp.asarray(b))
  assert answer == pytest.approx(float(total / 2), rel=1e-4)
  # Where things are does not matter, nor how strong they are.
  moved = jnp.asarray(3.0 * a[:, ::-1])
  assert relation.channels(jnp.asarray(a), moved) == pytest.approx(0, abs=1e-5)


def test_channels_has_a_finite_gradient_where_one_is_silent():
  a, b = np.random.default_rng(1).normal(size=(2, 2, 3, 2, 4)).astype("f4")
  a[..., 1] = 0.0
  gradient = jax.grad(relation.channels)(jnp.asarray(a), jnp.asarray(b))
  assert np.isfinite(gradient).all()
  assert np.isfinite(jax.grad(relation.channels)(0 * a, jnp.asarray(b))).all()
