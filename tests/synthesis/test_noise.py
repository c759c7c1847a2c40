"""Noise: its moments, and a step that changes nothing."""

import jax
import numpy as np
import pytest

from dfkt_jax.contracts import Context
from dfkt_jax.synthesis.noise import Noise
from tests.networks import tiny


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_noise_has_the_moments_of_its_distribution(distribution):
  method = Noise(distribution=distribution)
  state = method.init(jax.random.key(0), Context(teacher=tiny()))
  batch = method.sample(jax.random.key(1), state, 500)
  assert batch.images.shape == (500, 8, 8, 1)
  assert (batch.labels == -1).all()
  if distribution == "uniform":
    assert batch.images.mean() == pytest.approx(0.5, abs=0.01)
    assert batch.images.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)
  else:
    # N(0.4, 0.3) clipped to [0, 1].
    assert np.median(batch.images) == pytest.approx(0.4, abs=0.02)


def test_a_step_changes_nothing():
  method = Noise()
  state = method.init(jax.random.key(0), Context(teacher=tiny()))
  after, info = method.step(jax.random.key(1), state, Context(teacher=tiny()))
  jax.tree.map(np.testing.assert_array_equal, state, after)
  assert 0.1 <= info.confidence <= 1
