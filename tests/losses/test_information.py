"""Compare entropies with values worked out by hand, and with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import information as losses
from dfkt_jax.losses import reduce

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
UNIFORM = jnp.zeros((2, 3))


def test_entropy_by_hand():
  first = 0.5 * np.log(2) + 0.5 * np.log(4)
  second = -(0.2 * np.log(0.1) + 0.8 * np.log(0.8))
  found = losses.entropy(LOGITS)
  np.testing.assert_allclose(found, [first, second], rtol=1e-5)
  assert found.mean() == pytest.approx((first + second) / 2)


def test_marginal_entropy_by_hand_and_at_its_extremes():
  p = np.array([0.3, 0.175, 0.525])
  assert losses.marginal_entropy(LOGITS) == pytest.approx(
    -(p * np.log(p)).sum()
  )
  assert losses.marginal_entropy(UNIFORM) == pytest.approx(np.log(3))
  one_class = jnp.array([[100.0, -100.0, -100.0]] * 2)
  assert losses.marginal_entropy(one_class) == pytest.approx(0.0, abs=1e-6)
  gradient = jax.grad(losses.marginal_entropy)(one_class)
  assert np.isfinite(gradient).all()


def mean_entropy(logits, weights=None):
  return reduce.mean(losses.entropy(logits), weights)


LOSSES = [
  mean_entropy,
  losses.marginal_entropy,
  losses.information_maximization,
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [bool, jnp.float32])
def test_padding_changes_nothing(loss, dtype):
  padded = jnp.concatenate([LOGITS, jnp.full((3, 3), 7.0).at[0, 0].set(-9.0)])
  mask = jnp.array([True, True, False, False, False], dtype)
  value, gradient = jax.value_and_grad(loss)(padded, mask)
  expected, alone = jax.value_and_grad(loss)(LOGITS)
  assert value == pytest.approx(float(expected), rel=1e-5)
  np.testing.assert_allclose(gradient[:2], alone, rtol=1e-4, atol=1e-6)
  assert (gradient[2:] == 0).all()
  nothing = jax.grad(loss)(padded, jnp.zeros(5, dtype))
  assert np.isfinite(nothing).all()


def test_information_is_most_where_all_are_sure_and_classes_even():
  sure = 100.0 * jnp.eye(4)
  best = losses.information_maximization(sure)
  assert best == pytest.approx(-np.log(4), rel=1e-5)
  assert losses.information_maximization(jnp.zeros((4, 4))) == pytest.approx(
    0.0, abs=1e-6
  )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_of_two_is_an_example_twice(loss):
  twice = jnp.concatenate([LOGITS, LOGITS[1:]])
  expected = loss(twice)
  for scale in (1.0, 0.01):
    found = loss(LOGITS, scale * jnp.array([1.0, 2.0]))
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_pixels_are_examples(loss):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, 4, 5)).astype(np.float32))
  mask = jnp.asarray(rng.random((2, 3, 4)) > 0.5)
  flat = logits.reshape(24, 5)
  assert loss(logits) == pytest.approx(float(loss(flat)), rel=1e-5)
  expected = float(loss(flat, mask.reshape(24)))
  assert loss(logits, mask) == pytest.approx(expected, rel=1e-5)
  assert losses.entropy(logits).shape == (2, 3, 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_another_batch_are_refused(loss):
  with pytest.raises(AssertionError):
    loss(LOGITS, jnp.ones(1))
