import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses import image_prior
from tests.assets import fixtures

# One image, 2 x 2: right and down differences 1 and 2, diagonals 3 and 1.
SQUARE = jnp.array([[0.0, 1.0], [2.0, 3.0]])[None, :, :, None]


def test_total_variation_by_hand():
  right, down = np.sqrt(1 + 1), np.sqrt(4 + 4)
  assert image_prior.total_variation_l2(SQUARE) == pytest.approx(
    right + down + 3 + 1
  )
  assert image_prior.total_variation_l1(SQUARE) == pytest.approx(1 + 2 + 3 + 1)


def test_l2_norm_is_a_mean_over_images():
  pair = jnp.concatenate([SQUARE, jnp.zeros_like(SQUARE)])
  assert image_prior.l2_norm(pair) == pytest.approx(np.sqrt(14) / 2)


def test_flat_images_have_finite_gradients():
  flat = jnp.zeros((2, 4, 4, 1))
  for prior in (image_prior.total_variation_l2, image_prior.l2_norm):
    assert np.isfinite(jax.grad(prior)(flat)).all()


def test_against_released_code():
  peer = fixtures()
  noise = jnp.asarray(peer["noise_images"])
  check = lambda ours, key: np.testing.assert_allclose(
    ours, peer[key], rtol=1e-4
  )
  check(image_prior.total_variation_l1(noise), "nv_prior_first")
  check(image_prior.total_variation_l2(noise), "nv_prior_second")
  check(image_prior.total_variation_l1(noise), "tv_l1_noise")
