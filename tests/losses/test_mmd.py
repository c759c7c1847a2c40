"""Compare discrepancies with loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses.mmd import contrastive_discrepancy, gaussian_kernels

RNG = np.random.default_rng(0)
SOURCE = RNG.normal(size=(5, 3)).astype(np.float32)
TARGET = RNG.normal(size=(6, 3)).astype(np.float32)
S_LABELS, T_LABELS = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, -1, 3])
S_OF, T_OF = (x[:, None] == np.arange(4)[None] for x in (S_LABELS, T_LABELS))


def kernel_by_hand(x, used):
  x = x.astype(np.float64)
  squared = ((x[:, None] - x[None]) ** 2).sum(-1)
  pairs = [squared[i, j] for i in used for j in used if i != j]
  width = np.mean(pairs)
  return sum(np.exp(-squared / (width * 2.0**u)) for u in (-2, -1, 0, 1, 2))


def test_kernels_have_the_width_of_rows_that_count():
  mask = np.array([True, True, False, True, True])
  found = gaussian_kernels(jnp.asarray(SOURCE), mask)
  expected = kernel_by_hand(SOURCE, np.flatnonzero(mask))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  one = gaussian_kernels(jnp.asarray(SOURCE), mask, kernels=1)
  assert one.max() == pytest.approx(1.0)


def by_hand():
  z = np.concatenate([SOURCE, TARGET])
  k = kernel_by_hand(z, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
  values = {}
  for c in (0, 1, 2):
    for d in (0, 1, 3):
      s, t = np.flatnonzero(S_OF[:, c]), 5 + np.flatnonzero(T_OF[:, d])
      values[c, d] = (
        k[np.ix_(s, s)].mean()
        + k[np.ix_(t, t)].mean()
        - 2 * k[np.ix_(s, t)].mean()
      )
  within = np.mean([values[0, 0], values[1, 1]])
  between = np.mean([v for (c, d), v in values.items() if c != d])
  return within, between


def discrepancy(source, target):
  return contrastive_discrepancy(source, target, S_OF, T_OF)


def test_it_is_the_mean_over_present_classes():
  found = discrepancy(jnp.asarray(SOURCE), jnp.asarray(TARGET))
  np.testing.assert_allclose(found, by_hand(), rtol=1e-4)


def test_rows_without_a_class_do_not_count():
  moved = TARGET.copy()
  moved[4] = 50.0
  np.testing.assert_allclose(
    discrepancy(jnp.asarray(SOURCE), jnp.asarray(moved)), by_hand(), rtol=1e-4
  )


def test_equal_rows_in_equal_classes_have_no_discrepancy():
  x = jnp.asarray(SOURCE)
  within, between = contrastive_discrepancy(x, x, S_OF, S_OF)
  assert within == pytest.approx(0.0, abs=1e-5)
  assert between > 0.1


@pytest.mark.parametrize("source", [SOURCE, np.ones_like(SOURCE)])
@pytest.mark.parametrize("of", [T_OF, np.zeros_like(T_OF)])
def test_gradients_are_finite_in_corners(source, of):
  def loss(target):
    within, between = contrastive_discrepancy(source, target, S_OF, of)
    return within - between

  for target in (TARGET, np.ones_like(TARGET)):
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(target))
    assert np.isfinite(gradient).all()
    if not of.any():
      assert value == 0.0
      assert (gradient == 0).all()


def test_classes_of_other_rows_are_refused():
  with pytest.raises(AssertionError):
    contrastive_discrepancy(jnp.asarray(SOURCE), TARGET, S_OF, S_OF)
  with pytest.raises(AssertionError):
    gaussian_kernels(jnp.asarray(SOURCE), np.ones((5, 1), bool))
