"""The Gaussian mixture against SciPy, and cases that are hard to fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dfkt_jax.adaptation import mixture
from dfkt_jax.devices.mesh import DATA, make_mesh

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 3)).astype(np.float32)
RESPONSIBILITIES = RNG.dirichlet(np.ones(4), 40).astype(np.float32)
SPREAD = RNG.dirichlet(np.ones(4), 40).astype(np.float32)


def by_hand(epsilon):
  f = FEATURES.astype(np.float64)
  columns = []
  for r, s in zip(RESPONSIBILITIES.T, SPREAD.T):
    mean = r @ f / r.sum()
    covariance = (s[:, None] * (f - mean)).T @ (f - mean) / s.sum()
    gaussian = stats.multivariate_normal(mean, covariance + epsilon * np.eye(3))
    columns.append(np.log(r.sum() / 40) + gaussian.logpdf(f))
  return np.stack(columns, 1)


def test_it_equals_scipys_density_up_to_a_constant():
  found = mixture.log_joint(FEATURES, RESPONSIBILITIES, SPREAD, 0.1)
  constant = 1.5 * np.log(2 * np.pi)
  np.testing.assert_allclose(found - constant, by_hand(0.1), rtol=1e-3)


def test_padding_does_not_count():
  strange = 100.0 * RNG.normal(size=(8, 3)).astype(np.float32)
  zeros = np.zeros((8, 4), np.float32)
  found = mixture.log_joint(
    np.concatenate([FEATURES, strange]),
    np.concatenate([RESPONSIBILITIES, zeros]),
    np.concatenate([SPREAD, zeros]),
    0.1,
  )
  expected = mixture.log_joint(FEATURES, RESPONSIBILITIES, SPREAD, 0.1)
  np.testing.assert_allclose(found[:40], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("images", [3, 40])
def test_more_dimensions_than_images_is_finite(images):
  # Rank `images` in 300 dimensions: in f32 there is no factor without more e.
  features = RNG.normal(size=(images, 300)).astype(np.float32)
  features = np.abs(features) / np.linalg.norm(features, axis=1)[:, None]
  labels = np.eye(4, dtype=np.float32)[np.arange(images) % 3]
  found = jax.jit(mixture.log_joint)(features, labels, labels, 1e-6)
  assert np.isfinite(found).all()
  # Every image is nearest to its own class; the last class has no image.
  np.testing.assert_array_equal(found.argmax(1), np.arange(images) % 3)


def test_a_covariance_without_a_factor_gets_more_e():
  # An eigenvalue below zero, as rounding can leave it.
  covariance = jnp.diag(jnp.array([1.0, -3e-6, 1e-3]))
  factor = mixture._factor(covariance, 1e-6)
  np.testing.assert_allclose(
    factor @ factor.T, covariance + 1e-4 * np.eye(3), rtol=1e-4, atol=1e-7
  )
  sound = mixture._factor(jnp.eye(3), 1e-6)
  np.testing.assert_allclose(sound, np.sqrt(1 + 1e-6) * np.eye(3), rtol=1e-6)
  # With NaN the search ends, and the result is NaN.
  assert np.isnan(mixture._factor(jnp.full((3, 3), jnp.nan), 1e-6)).any()


def test_it_does_not_depend_on_devices():
  mesh = make_mesh(8)
  spec = jax.sharding.PartitionSpec(DATA)
  sharding = jax.sharding.NamedSharding(mesh, spec)
  expected = mixture.log_joint(FEATURES, RESPONSIBILITIES, SPREAD, 1e-3)
  with jax.set_mesh(mesh):
    args = jax.device_put((FEATURES, RESPONSIBILITIES, SPREAD), sharding)
    found = jax.jit(mixture.log_joint)(*args, 1e-3)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
