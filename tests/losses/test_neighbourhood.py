"""Compare neighborhood clustering with plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.devices.mesh import DATA, make_mesh
from dfkt_jax.losses.neighbourhood import neighbourhood_entropy

RNG = np.random.default_rng(0)


def unit(*shape):
  x = RNG.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


BANK, FEATURES = unit(16, 4), unit(4, 4)
ROWS = np.array([3, 0, 9, 3])  # one image twice
VALID = np.arange(16) < 14


def by_hand(features):
  keys = BANK.astype(np.float64).copy()
  keys[ROWS] = features  # of twins any will do: they do not count it
  entropies = []
  for i, row in enumerate(ROWS):
    met = [k for k in range(16) if VALID[k] and k not in ROWS]
    met = [keys[k] for k in met] + [
      features[j] for j in range(4) if ROWS[j] != row
    ]
    odds = np.exp(np.array(met) @ features[i] / 0.3)
    p = odds / odds.sum()
    entropies.append(-(p * np.log(p)).sum())
  return np.array(entropies)


def entropies(features, bank=BANK):
  return neighbourhood_entropy(features, bank, ROWS, VALID, 0.3)


def loss(features, bank=BANK):
  return entropies(features, bank).mean()


def test_it_is_the_entropy_of_similarities_to_all_others():
  expected = by_hand(FEATURES)
  found = entropies(jnp.asarray(FEATURES))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert loss(jnp.asarray(FEATURES)) == pytest.approx(expected.mean(), rel=1e-4)


def test_its_gradient_goes_through_both_sides():
  gradient = jax.grad(loss)(jnp.asarray(FEATURES))
  for index in ((0, 1), (2, 3)):
    step = np.zeros((4, 4))
    step[index] = 1e-4
    wide = FEATURES.astype(np.float64)
    slope = by_hand(wide + step).mean() - by_hand(wide - step).mean()
    slope /= 2e-4
    assert gradient[index] == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_padding_and_the_own_row_do_not_count():
  moved = BANK.copy()
  moved[[14, 15, 3, 0, 9]] = unit(5, 4)
  np.testing.assert_allclose(
    loss(jnp.asarray(FEATURES)), loss(jnp.asarray(FEATURES), moved), rtol=1e-6
  )


def test_a_single_image_has_no_entropy():
  alone = lambda f: neighbourhood_entropy(
    f, BANK[:1], np.array([0]), np.array([True]), 0.05
  ).mean()
  value, gradient = jax.value_and_grad(alone)(jnp.asarray(FEATURES[:1]))
  assert value == 0.0
  assert (gradient == 0).all()


def test_a_bank_on_eight_devices_gives_the_same():
  mesh = make_mesh(8)
  spec = jax.sharding.PartitionSpec(DATA)
  split = jax.sharding.NamedSharding(mesh, spec)
  with jax.set_mesh(mesh):
    bank = jax.device_put(BANK, split)
    both = jax.jit(jax.value_and_grad(loss))(jnp.asarray(FEATURES), bank)
  expected = jax.value_and_grad(loss)(jnp.asarray(FEATURES))
  for a, b in zip(both, expected):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_rows_of_another_batch_are_refused():
  with pytest.raises(AssertionError):
    neighbourhood_entropy(FEATURES, BANK, ROWS[:1], VALID, 0.3)
  with pytest.raises(AssertionError):
    neighbourhood_entropy(FEATURES, BANK, ROWS, VALID[:1], 0.3)
