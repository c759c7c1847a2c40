"""Compare each loss with values worked out by hand or by released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import classification as losses
from dfkt_jax.losses import information
from tests.assets import fixtures

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
UNIFORM = jnp.zeros((2, 3))


def test_cross_entropy_by_hand():
  value = losses.cross_entropy(LOGITS, jnp.array([1, 2]))
  np.testing.assert_allclose(value, -np.log([0.25, 0.8]), rtol=1e-5)
  assert value.mean() == pytest.approx(-(np.log(0.25) + np.log(0.8)) / 2)


def test_soft_cross_entropy_by_hand():
  targets = jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
  value = losses.soft_cross_entropy(LOGITS, targets)
  expected = [-(np.log(0.5) + np.log(0.25)) / 2, -np.log(0.1)]
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy():
  labels = jnp.array([2, 0])
  soft = losses.soft_cross_entropy(LOGITS, jax.nn.one_hot(labels, 3))
  np.testing.assert_allclose(soft, losses.cross_entropy(LOGITS, labels))


def test_confidence_is_cross_entropy_with_the_decision():
  value = losses.confidence(LOGITS)
  np.testing.assert_allclose(value, -np.log([0.5, 0.8]), rtol=1e-5)
  assert value.mean() == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_by_hand(temperature):
  soft = lambda logits: np.asarray(jax.nn.softmax(logits / temperature))
  t, s = soft(LOGITS), soft(UNIFORM)
  expected = temperature**2 * (t * np.log(t / s)).sum(1)
  found = losses.kl(LOGITS, UNIFORM, temperature)
  # A small divergence is a difference of logarithms that are close.
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert found.mean() == pytest.approx(expected.mean(), rel=1e-5)
  same = losses.kl(LOGITS, LOGITS, temperature)
  np.testing.assert_allclose(same, 0.0, atol=1e-6)


def test_kl_from_probabilities_is_kl():
  p = jax.nn.softmax(LOGITS)
  np.testing.assert_allclose(
    losses.kl_from_probabilities(p, UNIFORM),
    losses.kl(LOGITS, UNIFORM),
    rtol=1e-4,
  )


def test_kl_from_probabilities_of_zero_is_finite():
  sure = jnp.eye(3)[:2]
  value, gradient = jax.value_and_grad(
    lambda logits: losses.kl_from_probabilities(sure, logits).sum()
  )(LOGITS)
  assert value == pytest.approx(-np.log(0.5) - np.log(0.1), rel=1e-5)
  assert np.isfinite(gradient).all()


def test_l1_by_hand():
  value = losses.l1(jnp.array([[1.0, -2.0]]), jnp.array([[0.0, 2.0]]))
  assert value.shape == (1,)
  assert value[0] == pytest.approx(2.5)


def test_jensen_shannon_is_symmetric_and_bounded_by_log_2():
  sure = jnp.array([[50.0, 0.0, 0.0]])
  other = jnp.array([[0.0, 50.0, 0.0]])
  assert losses.jensen_shannon(sure, other)[0] == pytest.approx(np.log(2))
  assert losses.jensen_shannon(sure, sure)[0] == pytest.approx(0.0, abs=1e-6)
  one_way = losses.jensen_shannon(LOGITS, UNIFORM, 3.0).mean()
  other_way = losses.jensen_shannon(UNIFORM, LOGITS, 3.0).mean()
  assert one_way == pytest.approx(other_way)


def test_against_released_code():
  peer = fixtures()
  t20 = jnp.asarray(peer["cifar_logits_resnet20"])
  t56 = jnp.asarray(peer["cifar_logits_resnet56"])
  check = lambda ours, key: np.testing.assert_allclose(
    ours, peer[key], rtol=1e-4
  )
  check(losses.kl(t56, t20, 20.0).mean(), "kl_T20_teacher56_student20")
  check(losses.kl(t56, t20, 1.0).mean(), "kl_T1_teacher56_student20")
  check(losses.jensen_shannon_released(t56, t20).mean(), "js_T3_56_20_clamped")
  check(-information.marginal_entropy(t20), "class_balance_resnet20")
  check(losses.confidence(t20).mean(), "onehot_resnet20")


def of_probabilities(loss):
  """Return `loss` as a function of two arrays of logits."""
  return lambda x, y: loss(x, jax.nn.softmax(y))


PAIRS = {
  "kl": losses.kl,
  "kl_from_probabilities": lambda x, y: losses.kl_from_probabilities(
    jax.nn.softmax(x), y
  ),
  "soft_cross_entropy": of_probabilities(losses.soft_cross_entropy),
  "l1": losses.l1,
  "jensen_shannon": losses.jensen_shannon,
  "jensen_shannon_released": losses.jensen_shannon_released,
  "cross_entropy": lambda x, y: losses.cross_entropy(x, y.argmax(-1)),
  "confidence": lambda x, y: losses.confidence(x),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pixels_are_examples(name):
  loss = PAIRS[name]
  rng = np.random.default_rng(0)
  x, y = jnp.asarray(rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32))
  found = loss(x, y)
  assert found.shape == (2, 3, 4)
  flat = loss(x.reshape(24, 5), y.reshape(24, 5))
  np.testing.assert_allclose(found.reshape(24), flat, rtol=1e-6)
  one = loss(x[1, 2, 3], y[1, 2, 3])
  assert one.shape == ()
  assert one == pytest.approx(float(found[1, 2, 3]), rel=1e-5)


@pytest.mark.parametrize("name", [n for n in PAIRS if n != "confidence"])
def test_shapes_that_would_broadcast_are_refused(name):
  with pytest.raises(AssertionError):
    PAIRS[name](LOGITS, UNIFORM[:1])
  with pytest.raises(AssertionError):
    jax.jit(PAIRS[name])(LOGITS, UNIFORM[None])


def test_labels_of_one_column_are_refused():
  with pytest.raises(AssertionError):
    losses.cross_entropy(LOGITS, jnp.array([[1], [2]]))
