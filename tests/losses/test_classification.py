"""Each loss against values worked out by hand or by released code."""

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
  assert value == pytest.approx(-(np.log(0.25) + np.log(0.8)) / 2)


def test_confidence_is_cross_entropy_with_the_decision():
  assert losses.confidence(LOGITS) == pytest.approx(
    -(np.log(0.5) + np.log(0.8)) / 2
  )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_by_hand(temperature):
  soft = lambda logits: np.asarray(jax.nn.softmax(logits / temperature))
  t, s = soft(LOGITS), soft(UNIFORM)
  expected = temperature**2 * (t * np.log(t / s)).sum(1).mean()
  assert losses.kl(LOGITS, UNIFORM, temperature) == pytest.approx(
    expected, rel=1e-5
  )
  assert losses.kl(LOGITS, LOGITS, temperature) == pytest.approx(0, abs=1e-6)


def test_l1_by_hand():
  value = losses.l1(jnp.array([[1.0, -2.0]]), jnp.array([[0.0, 2.0]]))
  assert value == pytest.approx(2.5)


def test_jensen_shannon_is_symmetric_and_bounded_by_log_2():
  sure = jnp.array([[50.0, 0.0, 0.0]])
  other = jnp.array([[0.0, 50.0, 0.0]])
  assert losses.jensen_shannon(sure, other) == pytest.approx(np.log(2))
  assert losses.jensen_shannon(sure, sure) == pytest.approx(0.0, abs=1e-6)
  there = losses.jensen_shannon(LOGITS, UNIFORM, 3.0)
  assert there == pytest.approx(losses.jensen_shannon(UNIFORM, LOGITS, 3.0))


def test_against_released_code():
  peer = fixtures()
  t20 = jnp.asarray(peer["cifar_logits_resnet20"])
  t56 = jnp.asarray(peer["cifar_logits_resnet56"])
  check = lambda ours, key: np.testing.assert_allclose(
    ours, peer[key], rtol=1e-4
  )
  check(losses.kl(t56, t20, 20.0), "kl_T20_teacher56_student20")
  check(losses.kl(t56, t20, 1.0), "kl_T1_teacher56_student20")
  check(losses.jensen_shannon_released(t56, t20), "js_T3_56_20_clamped")
  check(-information.marginal_entropy(t20), "class_balance_resnet20")
  check(losses.confidence(t20), "onehot_resnet20")
