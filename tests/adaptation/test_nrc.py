"""NRC's loss by hand, and the banks that it shares with AaD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.adaptation import nrc
from dfkt_jax.adaptation.aad import AaD
from dfkt_jax.adaptation.nrc import NRC
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.contracts import Batch
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.adaptation.examples import (
  BANK,
  LOGITS,
  PREDICTIONS,
  ROWS,
  P,
  banks,
  entropies,
  neighbors,
)
from tests.networks import spec

KEY = jax.random.key(3)
RECIPE = Recipe(steps=40, batch_size=8, lr=0.02)


@pytest.mark.parametrize("weights", ["paper", "released"])
def test_the_loss_and_its_gradient_by_hand(weights):
  method = NRC(neighbours=3, expanded_neighbours=2, weights=weights)
  _, marginal = entropies(P)
  near = further = 0.0
  d_p = np.zeros((4, 3))
  for i, row in enumerate(ROWS):
    for k in neighbors(row, 3):
      expanded = neighbors(k, 2)
      mutual = row in expanded and weights == "paper"
      affinity = 1.0 if mutual else 0.1
      near -= affinity * P[i] @ PREDICTIONS[k] / 4
      d_p[i] -= affinity * PREDICTIONS[k] / 4
      for m in expanded:
        further -= 0.1 * P[i] @ PREDICTIONS[m] / 4
        d_p[i] -= 0.1 * PREDICTIONS[m] / 4
  loss = lambda logits: method.loss(logits, jnp.asarray(ROWS), banks())
  info = loss(LOGITS)
  assert info.neighbours == pytest.approx(near, rel=1e-4)
  assert info.expanded == pytest.approx(further, rel=1e-4)
  assert info.loss == pytest.approx(near + further - marginal, rel=1e-4)
  d_p += (np.log(P.mean(0)) + 1) / 4
  expected = P * (d_p - (P * d_p).sum(1, keepdims=True))
  gradient = jax.grad(lambda logits: loss(logits).loss)(LOGITS)
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_batch_is_written_to_the_banks():
  features = 3.0 * jnp.ones((4, 4))
  state = nrc.write(banks(), jnp.asarray(ROWS), features, LOGITS)
  np.testing.assert_allclose(state.features[ROWS], 0.5, rtol=1e-5)
  np.testing.assert_allclose(state.predictions[ROWS], P, rtol=1e-5)
  np.testing.assert_array_equal(state.features[2], BANK[2])


@pytest.mark.parametrize("method", [NRC(), AaD()])
def test_features_of_the_banks_are_without_dropout(method):
  source = net.init(KEY, models.build("shot-lenet", 10), spec(28))
  pixels = np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), np.uint8)
  mesh = make_mesh(1)
  with jax.set_mesh(mesh):
    predictions = make_predict_all(pixels, mesh)(source)
    state = jax.jit(method.init)(KEY, context(RECIPE, source, predictions))
    batch = Batch(jnp.asarray(pixels, jnp.float32) / 255, rows=jnp.arange(8))
    step, here = jax.jit(method.step), context(RECIPE, source, batch=batch)
    states = [step(jax.random.key(seed), state, here)[0] for seed in (0, 1)]
  one, other = (state.features for state in states)
  np.testing.assert_array_equal(one, other)
