"""Compare image priors with values worked out by hand or released code."""

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


def test_l2_norm_is_per_image():
  pair = jnp.concatenate([SQUARE, jnp.zeros_like(SQUARE)])
  found = image_prior.l2_norm(pair)
  np.testing.assert_allclose(found, [np.sqrt(14), 0.0], atol=2e-6)
  assert found.mean() == pytest.approx(np.sqrt(14) / 2)


def test_sums_are_per_image():
  pair = jnp.concatenate([SQUARE, -2.0 * SQUARE])
  np.testing.assert_allclose(image_prior.pixel_sum(pair), [6, 12])
  # Both rows differ by 1 to the right, both columns by 2 downwards.
  np.testing.assert_allclose(image_prior.neighbour_sum(pair), [6, 12])


@pytest.mark.parametrize(
  "prior", [image_prior.total_variation_l2, image_prior.l2_norm]
)
def test_flat_images_have_finite_gradients(prior):
  flat = jnp.zeros((2, 4, 4, 1))
  assert np.isfinite(jax.grad(lambda x: prior(x).sum())(flat)).all()


def test_against_released_code():
  peer = fixtures()
  noise = jnp.asarray(peer["noise_images"])
  check = lambda ours, key: np.testing.assert_allclose(
    ours, peer[key], rtol=1e-4
  )
  check(image_prior.total_variation_l1(noise), "nv_prior_first")
  check(image_prior.total_variation_l2(noise), "nv_prior_second")
  check(image_prior.total_variation_l1(noise), "tv_l1_noise")


@pytest.mark.parametrize(
  "prior",
  [
    image_prior.total_variation_l2,
    image_prior.total_variation_l1,
    image_prior.l2_norm,
    image_prior.pixel_sum,
    image_prior.neighbour_sum,
  ],
)
def test_a_single_image_without_a_batch_is_refused(prior):
  with pytest.raises(AssertionError):
    prior(SQUARE[0])
