"""Compare early-learning regularization with plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses.early_learning import early_learning

Q, T = np.asarray(
  jax.nn.softmax(np.random.default_rng(0).normal(size=(2, 4, 3)))
)


def mean_loss(predictions, targets):
  return early_learning(predictions, targets).mean()


def test_it_is_the_log_of_the_disagreement():
  expected = np.log(1 - (Q * T).sum(1))
  found = early_learning(jnp.asarray(Q), T)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert found.mean() == pytest.approx(expected.mean(), rel=1e-4)


def test_only_predictions_have_a_gradient():
  to_q, to_t = jax.grad(mean_loss, argnums=(0, 1))(
    jnp.asarray(Q), jnp.asarray(T)
  )
  expected = -T / (1 - (Q * T).sum(1, keepdims=True)) / 4
  np.testing.assert_allclose(to_q, expected, rtol=1e-4)
  assert (to_t == 0).all()


def test_full_agreement_is_finite():
  sure = jnp.eye(3)
  value, gradient = jax.value_and_grad(mean_loss)(sure, sure)
  assert value == pytest.approx(np.log(1e-4), rel=1e-2)
  assert np.isfinite(gradient).all()


def test_leading_axes_are_examples():
  q, t = jnp.asarray(Q).reshape(2, 2, 3), jnp.asarray(T).reshape(2, 2, 3)
  found = early_learning(q, t)
  assert found.shape == (2, 2)
  flat = early_learning(jnp.asarray(Q), T)
  np.testing.assert_allclose(found.reshape(4), flat, rtol=1e-6)


def test_targets_of_another_shape_are_refused():
  with pytest.raises(AssertionError):
    early_learning(jnp.asarray(Q), T[:1])
