import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import augment

KEY = jax.random.key(0)
IMAGES = jnp.arange(6 * 5 * 5, dtype=jnp.float32).reshape(6, 5, 5, 1) + 1


def test_a_crop_is_a_shift_with_zeros_coming_in():
  cropped = np.asarray(augment.random_crop(KEY, IMAGES, 2))
  assert cropped.shape == IMAGES.shape
  padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
  offsets = set()
  for old, new in zip(padded, cropped):
    found = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if np.array_equal(old[i : i + 5, j : j + 5], new)
    ]
    assert len(found) == 1
    offsets |= set(found)
  assert len(offsets) > 1


def test_flips_are_drawn_for_each_image():
  many = jnp.tile(IMAGES[:1], (400, 1, 1, 1))
  flipped = np.asarray(augment.random_flip(KEY, many))
  same = (flipped == np.asarray(many)).all((1, 2, 3))
  mirrored = (flipped[:, :, ::-1] == np.asarray(many)).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert same.mean() == pytest.approx(0.5, abs=0.1)


def test_jitter_rolls_the_whole_batch_alike():
  rolled = np.asarray(augment.jitter(KEY, IMAGES, 2))
  shifts = _shifts(rolled)
  assert len(shifts) == 1


def test_jitter_each_rolls_every_image_by_itself():
  rolled = np.asarray(augment.jitter_each(KEY, IMAGES, 2))
  assert len(_shifts(rolled)) > 1


def _shifts(rolled):
  shifts = set()
  for old, new in zip(np.asarray(IMAGES), rolled):
    found = [
      (i, j)
      for i in range(-2, 3)
      for j in range(-2, 3)
      if np.array_equal(np.roll(old, (i, j), (0, 1)), new)
    ]
    assert len(found) == 1
    shifts |= set(found)
  return shifts


def test_nothing_asked_nothing_done():
  same = augment.crop_and_flip(KEY, IMAGES, 0, False)
  np.testing.assert_array_equal(same, IMAGES)


def test_turning_by_nothing_and_shrinking_by_nothing_changes_nothing():
  same = augment.random_affine(KEY, IMAGES, 0.0, 0.0)
  np.testing.assert_allclose(same, IMAGES, rtol=1e-5)


def test_turned_images_keep_their_centre_and_lie_within_the_angle():
  images = jnp.zeros((200, 9, 9, 1)).at[:, 4, 4].set(2.0).at[:, 4, 8].set(1.0)
  turned = np.array(augment.random_affine(KEY, images, 45.0, 0.0))[..., 0]
  np.testing.assert_allclose(turned[:, 4, 4], 2.0, rtol=1e-4)
  turned[:, 4, 4] = 0.0
  mass = turned.sum((1, 2))
  y = (turned * (np.arange(9) - 4)[None, :, None]).sum((1, 2)) / mass
  x = (turned * (np.arange(9) - 4)[None, None]).sum((1, 2)) / mass
  angles = np.degrees(np.arctan2(y, x))
  assert np.abs(angles).max() < 50.0
  assert angles.min() < -30.0
  assert angles.max() > 30.0


def test_shrunk_images_are_smaller_and_none_is_larger():
  images = jnp.ones((200, 16, 16, 1))
  shrunk = np.asarray(augment.random_affine(KEY, images, 0.0, 0.5))
  areas = shrunk.sum((1, 2, 3)) / 256
  assert areas.max() <= 1.0 + 1e-5
  assert 0.2 < areas.min() < 0.4


def test_noise_has_the_deviation_and_stays_in_range():
  grey = jnp.full((50, 8, 8, 3), 0.5)
  noisy = np.asarray(augment.gaussian_noise(KEY, grey, 0.1))
  assert noisy.std() == pytest.approx(0.1, rel=0.05)
  bright = augment.gaussian_noise(KEY, jnp.ones((4, 8, 8, 3)), 0.5)
  assert float(bright.max()) == 1.0


def test_salt_and_pepper_hits_so_many_pixels_in_all_channels():
  grey = jnp.full((50, 16, 16, 3), 0.5)
  hit = np.asarray(augment.salt_and_pepper(KEY, grey, 0.2))
  assert (hit == hit[..., :1]).all()
  assert (hit == 0.0).mean() == pytest.approx(0.1, abs=0.01)
  assert (hit == 1.0).mean() == pytest.approx(0.1, abs=0.01)


def test_mixed_images_lie_between_two_of_the_batch():
  dark_and_light = jnp.repeat(jnp.array([0.2, 0.8]), 200)[:, None, None, None]
  images = jnp.broadcast_to(dark_and_light, (400, 8, 8, 1))
  mixed = np.asarray(augment.mix(KEY, images, 1.0))[..., 0]
  assert mixed.min() >= 0.2 - 1e-6
  assert mixed.max() <= 0.8 + 1e-6
  spread = np.ptp(mixed, axis=(1, 2))
  # By a mask: pixels of either. By a convex combination: one grey level.
  masked = spread > 0.5
  assert 0.1 < masked.mean() < 0.4
  off = np.minimum(abs(mixed - 0.2), abs(mixed - 0.8))[masked]
  assert off.max() < 1e-5
  between = (spread < 1e-6) & (mixed[:, 0, 0] > 0.25) & (mixed[:, 0, 0] < 0.75)
  assert 0.1 < between.mean() < 0.4
  same = np.asarray(augment.mix(KEY, images, 0.0))
  np.testing.assert_array_equal(same, images)
