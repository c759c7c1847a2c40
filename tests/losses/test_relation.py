"""Compare relations within a batch with plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import relation

X, Y = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_info_nce_is_the_share_of_the_own_key():
  z, t = unit(X), unit(Y)
  odds = np.exp(z @ t.T / 0.5)
  expected = -np.log(odds.diagonal() / odds.sum(1))
  loss = relation.info_nce(jnp.asarray(z), jnp.asarray(t), 0.5)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert loss.mean() == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize(("x", "y"), [(X, X), (X, Y)])
def test_distances_are_over_their_mean(x, y):
  plain = np.linalg.norm(x[:, None] - y[None], axis=-1)
  expected = plain / plain[plain > 1e-6].mean()
  found = relation.distances(jnp.asarray(x), jnp.asarray(y))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_angles_are_cosines_at_the_vertex():
  found = relation.angles(jnp.asarray(X), jnp.asarray(Y))
  a, b = X[1] - Y[2], X[4] - Y[2]
  assert found[2, 1, 4] == pytest.approx(float(unit(a) @ unit(b)), rel=1e-4)
  same = relation.angles(jnp.asarray(X), jnp.asarray(X))
  assert same[1, 1, 3] == 0.0


def test_huber_is_quadratic_then_linear():
  x = jnp.array([0.5, 3.0])
  expected = (0.5 * 0.25 + 2.5) / 2
  assert relation.huber(x, jnp.zeros(2)) == pytest.approx(expected)


def test_gradients_are_finite_where_two_examples_are_one():
  twins = jnp.asarray(np.repeat(X[:1], 3, axis=0))

  def loss(x):
    z = relation.normalize(x)
    return relation.distances(z, z).sum() + relation.angles(z, z).sum()

  assert np.isfinite(jax.grad(loss)(twins)).all()


def test_channels_compares_normalized_products_by_hand():
  a, b = np.random.default_rng(1).normal(size=(2, 2, 3, 2, 4)).astype("f4")
  expected = []
  for x, y in zip(a.reshape(2, 6, 4), b.reshape(2, 6, 4)):
    expected.append(np.square(unit(x.T @ x) - unit(y.T @ y)).sum() / 4)
  found = relation.channels(jnp.asarray(a), jnp.asarray(b))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert found.mean() == pytest.approx(float(np.mean(expected)), rel=1e-4)
  # Neither the places of things nor their strength matter.
  moved = jnp.asarray(3.0 * a[:, ::-1])
  np.testing.assert_allclose(
    relation.channels(jnp.asarray(a), moved), 0.0, atol=1e-5
  )


def test_channels_has_a_finite_gradient_where_one_is_silent():
  a, b = np.random.default_rng(1).normal(size=(2, 2, 3, 2, 4)).astype("f4")
  a[..., 1] = 0.0
  gradient = jax.grad(lambda x: relation.channels(x, jnp.asarray(b)).mean())
  assert np.isfinite(gradient(jnp.asarray(a))).all()
  assert np.isfinite(gradient(0 * jnp.asarray(a))).all()


def test_huber_keeps_leading_axes():
  found = relation.huber(jnp.asarray(X), jnp.asarray(Y))
  assert found.shape == (5,)
  one = relation.huber(jnp.asarray(X[2]), jnp.asarray(Y[2]))
  assert found[2] == pytest.approx(float(one), rel=1e-6)


def test_batches_of_another_shape_are_refused():
  x, y = jnp.asarray(X), jnp.asarray(Y)
  pairs = (
    relation.distances,
    relation.angles,
    relation.huber,
    lambda x, y: relation.info_nce(x, y, 0.5),
  )
  for loss in pairs:
    with pytest.raises(AssertionError):
      loss(x, y[:1])
  maps = jnp.ones((2, 3, 3, 4))
  with pytest.raises(AssertionError):
    relation.channels(maps, maps[:1])
