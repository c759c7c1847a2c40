"""SHOT's loss by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.adaptation.shot import SHOT, UNKNOWN
from dfkt_jax.contracts import OpenSet
from tests.adaptation.examples import LOGITS, P, entropies


def test_the_loss_by_hand():
  labels = jnp.array([0, 2, 2, 1])
  entropy, marginal = entropies(P)
  cross_entropy = -np.log(P[np.arange(4), np.asarray(labels)]).mean()
  info = SHOT(label_weight=0.3).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == pytest.approx(
    0.3 * cross_entropy + entropy - marginal, rel=1e-4
  )
  im = SHOT(label_weight=0.0).loss(LOGITS, labels, jnp.int32(0))
  assert im.loss == pytest.approx(entropy - marginal, rel=1e-4)
  partial = SHOT(diversity_weight=0.0).loss(LOGITS, labels, jnp.int32(0))
  assert partial.loss == pytest.approx(0.3 * cross_entropy + entropy, rel=1e-4)


def test_labels_wait_for_the_warmup():
  method, labels = SHOT(label_warmup=1), jnp.array([0, 2, 2, 1])
  early = method.loss(LOGITS, labels, jnp.int32(0)).loss
  late = method.loss(LOGITS, labels, jnp.int32(1)).loss
  assert late == pytest.approx(float(SHOT().loss(LOGITS, labels, 0).loss))
  assert early == pytest.approx(
    float(SHOT(label_weight=0.0).loss(LOGITS, labels, 0).loss)
  )


def test_unknown_images_count_only_in_the_mean():
  labels = jnp.array([0, UNKNOWN, 2, UNKNOWN])
  known = np.array([0, 2])
  entropy, _ = entropies(P[known])
  _, marginal = entropies(P)
  cross_entropy = -np.log(P[known, [0, 2]]).mean()
  info = SHOT(open_set=True).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == pytest.approx(
    0.3 * cross_entropy + entropy - marginal, rel=1e-4
  )


def test_a_batch_of_unknown_images_has_no_loss():
  labels = jnp.full(4, UNKNOWN)
  info = SHOT(open_set=True).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == 0.0


def test_it_may_have_an_open_set():
  assert isinstance(SHOT(), OpenSet)
