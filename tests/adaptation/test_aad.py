"""AaD's loss by hand; test_nrc.py tests its banks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.adaptation.aad import AaD
from tests.adaptation.examples import (
  LOGITS,
  PREDICTIONS,
  ROWS,
  P,
  banks,
  neighbors,
)


def test_the_loss_and_its_gradient_by_hand():
  method = AaD(neighbours=3, dispersion_weight=2.0, dispersion_decay=1.5)
  attraction, d_p = 0.0, np.zeros((4, 3))
  for i, row in enumerate(ROWS):
    for k in neighbors(row, 3):
      attraction -= P[i] @ PREDICTIONS[k] / 4
      d_p[i] -= PREDICTIONS[k] / 4
  weight = 2.0 * (1 + 10 * 0.3) ** -1.5
  others = P.sum(0) - P
  dispersion = (P * others).sum() / 4
  # Through both factors: every pair is counted twice.
  d_p += weight * 2 * others / 4
  loss = lambda logits: method.loss(
    logits, jnp.asarray(ROWS), banks(), jnp.float32(0.3)
  )
  info = loss(LOGITS)
  assert info.dispersion == pytest.approx(dispersion, rel=1e-4)
  assert info.loss == pytest.approx(attraction + weight * dispersion, rel=1e-4)
  expected = P * (d_p - (P * d_p).sum(1, keepdims=True))
  gradient = jax.grad(lambda logits: loss(logits).loss)(LOGITS)
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
