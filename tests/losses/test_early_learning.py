import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses.early_learning import early_learning

Q, T = np.asarray(
  jax.nn.softmax(np.random.default_rng(0).normal(size=(2, 4, 3)))
)


def test_it_is_the_log_of_what_disagrees():
  expected = np.log(1 - (Q * T).sum(1)).mean()
  assert early_learning(jnp.asarray(Q), T) == pytest.approx(expected, rel=1e-4)


def test_its_gradient_goes_to_the_predictions_alone():
  to_q, to_t = jax.grad(early_learning, argnums=(0, 1))(
    jnp.asarray(Q), jnp.asarray(T)
  )
  expected = -T / (1 - (Q * T).sum(1, keepdims=True)) / 4
  np.testing.assert_allclose(to_q, expected, rtol=1e-4)
  assert (to_t == 0).all()


def test_full_agreement_is_finite():
  sure = jnp.eye(3)
  value, gradient = jax.value_and_grad(early_learning)(sure, sure)
  assert value == pytest.approx(np.log(1e-4), rel=1e-2)
  assert np.isfinite(gradient).all()
