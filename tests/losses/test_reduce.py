"""Means over examples that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import reduce

VALUES = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
WEIGHTS = np.array([0.5, 0.0, 2.0, 0.25], np.float32)


def test_without_weights_all_values_count_alike():
  found = reduce.mean(jnp.asarray(VALUES))
  assert found == pytest.approx(VALUES.mean(), rel=1e-5)


def test_bool_weights_choose_rows():
  mask = jnp.array([True, False, True, True])
  found = reduce.mean(jnp.asarray(VALUES), mask)
  np.testing.assert_allclose(found, VALUES[[0, 2, 3]].mean(0), rtol=1e-5)
  same = reduce.mean(jnp.asarray(VALUES), mask.astype(jnp.float32))
  np.testing.assert_array_equal(found, same)


def test_weights_are_relative():
  expected = np.average(VALUES, axis=0, weights=WEIGHTS)
  for scale in (1.0, 1e-3):
    found = reduce.mean(jnp.asarray(VALUES), jnp.asarray(scale * WEIGHTS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_may_cover_several_axes():
  weights = np.arange(12.0, dtype=np.float32).reshape(4, 3)
  expected = np.average(
    VALUES.reshape(12, 2), axis=0, weights=weights.reshape(12)
  )
  found = reduce.mean(jnp.asarray(VALUES), jnp.asarray(weights))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, jnp.float32])
def test_rows_that_do_not_count_change_nothing(dtype):
  broken = jnp.asarray(VALUES).at[1].set(jnp.nan)
  weights = jnp.asarray(WEIGHTS > 0, dtype)
  found, gradient = jax.value_and_grad(lambda x: reduce.mean(x, weights).sum())(
    broken
  )
  expected = VALUES[[0, 2, 3]].mean(0).sum()
  assert found == pytest.approx(float(expected), rel=1e-5)
  assert (gradient[1] == 0).all()
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [bool, jnp.float32])
def test_where_none_counts_the_mean_and_its_gradient_are_zero(dtype):
  value, gradient = jax.value_and_grad(
    lambda x: reduce.mean(x, jnp.zeros(4, dtype)).sum()
  )(jnp.asarray(VALUES))
  assert value == 0.0
  assert (gradient == 0).all()


def test_weights_of_another_batch_are_refused():
  for shape in ((3,), (4, 2), (4, 3, 2, 1)):
    with pytest.raises((AssertionError, ValueError)):
      reduce.mean(jnp.asarray(VALUES), jnp.ones(shape))
