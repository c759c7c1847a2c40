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
