"""MixMatch's split, targets and loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.adaptation import mixmatch
from dfkt_jax.adaptation.mixmatch import Split
from dfkt_jax.contracts import Predictions
from dfkt_jax.network import Classification

RNG = np.random.default_rng(4)
LOGITS = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
P = np.asarray(jax.nn.softmax(LOGITS), np.float64)


def test_the_sure_are_the_lowest_entropies_of_every_class():
  logits = 3.0 * RNG.normal(size=(40, 5)).astype(np.float32)
  logits[:, 4] -= 100.0  # no image has this class
  valid = np.arange(40) < 37
  predictions = Predictions(
    jnp.zeros((40, 2)), jnp.asarray(logits), jnp.asarray(valid)
  )
  split = jax.jit(mixmatch.split, static_argnums=1)
  found = split(predictions, Classification(5))
  p = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
  p /= p.sum(1, keepdims=True)
  entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
  share = (entropy[:37] < entropy[:37].mean()).mean()
  expected = np.zeros(40, bool)
  for k in range(4):
    rows = [i for i in range(37) if p[i].argmax() == k]
    rows.sort(key=lambda i: entropy[i])
    expected[rows[: int(np.ceil(share * len(rows)))]] = True
  np.testing.assert_array_equal(found.sure, expected)
  np.testing.assert_array_equal(found.labels[:37], p[:37].argmax(1))
  assert 0 < expected.sum() < 37


def test_a_split_of_equals_has_no_sure_image():
  same = Predictions(jnp.zeros((6, 2)), jnp.ones((6, 3)), jnp.ones(6, bool))
  assert not np.asarray(mixmatch.split(same, Classification(3)).sure).any()


def test_targets_are_labels_or_sharpened_means():
  others = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
  sure = jnp.array([True, False, True, False])
  mine = Split(sure, jnp.array([2, 0, 1, 0]))
  found = mixmatch.targets(mine, [LOGITS, others], temperature=0.5)
  mean = (P + np.asarray(jax.nn.softmax(others), np.float64)) / 2
  sharp = mean**2 / (mean**2).sum(1, keepdims=True)
  expected = np.where(np.asarray(sure)[:, None], np.eye(3)[[2, 0, 1, 0]], sharp)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_loss_by_hand():
  targets = RNG.dirichlet(np.ones(3), size=4)
  sure = jnp.array([True, False, False, True])
  found = mixmatch.loss(
    LOGITS, jnp.asarray(targets, jnp.float32), sure, jnp.float32(30.0)
  )
  labeled = -(targets * np.log(P)).sum(1)[[0, 3]].mean()
  unlabeled = ((P - targets) ** 2)[[1, 2]].mean()
  assert found.labeled == pytest.approx(labeled, rel=1e-4)
  assert found.unlabeled == pytest.approx(unlabeled, rel=1e-4)
  assert found.loss == pytest.approx(labeled + 30.0 * unlabeled, rel=1e-4)


@pytest.mark.parametrize("sure", [True, False])
def test_a_batch_of_one_kind_has_a_finite_gradient(sure):
  loss = lambda logits: mixmatch.loss(
    logits,
    jnp.eye(3)[jnp.array([0, 1, 2, 0])],
    jnp.full(4, sure),
    jnp.float32(100.0),
  )
  found = loss(100.0 * LOGITS)
  assert float(found.unlabeled if sure else found.labeled) == 0.0
  gradient = jax.grad(lambda logits: loss(logits).loss)(100.0 * LOGITS)
  assert np.isfinite(np.asarray(gradient)).all()
