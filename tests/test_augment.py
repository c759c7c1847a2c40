"""Augmentations: what they change, how often, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import augment

KEY = jax.random.key(0)
IMAGES = jnp.arange(6 * 5 * 5, dtype=jnp.float32).reshape(6, 5, 5, 1) + 1


def test_a_crop_is_a_shift_filled_with_zeros():
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


def test_without_padding_and_flip_nothing_changes():
  same = augment.crop_and_flip(KEY, IMAGES, 0, False)
  np.testing.assert_array_equal(same, IMAGES)


def test_a_rotation_and_shrinkage_of_zero_change_nothing():
  same = augment.random_affine(KEY, IMAGES, 0.0, 0.0)
  np.testing.assert_allclose(same, IMAGES, rtol=1e-5)


def test_rotated_images_keep_their_center_and_stay_within_the_angle():
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


def test_shrunk_images_are_never_larger():
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


def test_salt_and_pepper_hits_its_share_of_pixels_in_all_channels():
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
  # A mask leaves pixels of either; a convex combination has one gray level.
  masked = spread > 0.5
  assert 0.1 < masked.mean() < 0.4
  off = np.minimum(abs(mixed - 0.2), abs(mixed - 0.8))[masked]
  assert off.max() < 1e-5
  between = (spread < 1e-6) & (mixed[:, 0, 0] > 0.25) & (mixed[:, 0, 0] < 0.75)
  assert 0.1 < between.mean() < 0.4
  same = np.asarray(augment.mix(KEY, images, 0.0))
  np.testing.assert_array_equal(same, images)


def test_mixup_has_one_weight_and_one_order_for_all_arrays():
  labels = jnp.eye(6)
  images, mixed = augment.mixup(KEY, (IMAGES, labels), 0.75)
  # One-hot labels show which examples were mixed, and with which weight.
  weights = np.asarray(jnp.diagonal(mixed))
  moved = weights < 1.0 - 1e-6
  assert moved.sum() >= 2
  assert np.ptp(weights[moved]) < 1e-6
  flat = np.asarray(IMAGES).reshape(6, -1)
  expected = np.asarray(mixed) @ flat
  np.testing.assert_allclose(images.reshape(6, -1), expected, rtol=1e-4)
  assert set(np.asarray(mixed).sum(0).round(4)) == {1.0}


def test_mixup_can_draw_a_weight_for_each_example():
  labels = jnp.eye(6)
  images, mixed = augment.mixup(KEY, (IMAGES, labels), 1.0, each=True)
  weights = np.asarray(jnp.diagonal(mixed))
  moved = weights < 1.0 - 1e-6
  assert len(set(weights[moved].round(5))) == moved.sum() >= 2
  expected = np.asarray(mixed) @ np.asarray(IMAGES).reshape(6, -1)
  np.testing.assert_allclose(images.reshape(6, -1), expected, rtol=1e-4)


def test_mixup_can_keep_each_example_nearer_to_itself():
  smallest = {False: [], True: []}
  for own_first, weights in smallest.items():
    for index in range(20):
      key = jax.random.fold_in(KEY, index)
      mixed = augment.mixup(key, jnp.eye(6), 1.0, own_first)
      weights.append(float(jnp.diagonal(mixed).min()))
  assert min(smallest[True]) >= 0.5
  assert min(smallest[False]) < 0.4


def test_a_small_alpha_hardly_mixes():
  spread = {}
  for alpha in (0.1, 10.0):
    far = [
      augment.mixup(jax.random.fold_in(KEY, i), jnp.eye(6), alpha).max(1)
      for i in range(40)
    ]
    spread[alpha] = np.mean(far)
  assert spread[0.1] > 0.85
  assert spread[10.0] < 0.7


def test_quarter_turns_equal_those_of_numpy():
  turns = jnp.array([0, 1, 2, 3, 1, 0])
  turned = np.asarray(augment.quarter_turns(IMAGES, turns))
  for old, new, count in zip(np.asarray(IMAGES), turned, turns):
    np.testing.assert_array_equal(np.rot90(old, int(count)), new)


def ramp(size=12, count=300):
  """Return images whose first channels are row and column, in [0, 1]."""
  line = (jnp.arange(size) + 0.5) / size
  y, x = jnp.meshgrid(line, line, indexing="ij")
  image = jnp.stack([y, x, jnp.zeros_like(y)], -1)
  return jnp.broadcast_to(image, (count, *image.shape))


def test_a_resized_crop_is_a_rectangle_within_the_image():
  cropped = np.asarray(augment.resized_crop(KEY, ramp(), 0.25))
  inner = cropped[:, 2:-2, 2:-2]
  # Inside it is linear in either direction; the slope is the side's length.
  heights = np.diff(inner[..., 0], axis=1) * 12
  widths = np.diff(inner[..., 1], axis=2) * 12
  assert np.ptp(heights, axis=(1, 2)).max() < 1e-3
  height, width = heights[:, 0, 0], widths[:, 0, 0]
  area = height * width
  assert 0.2 < area.min() < 0.35
  assert 0.8 < area.max() <= 1.0 + 1e-3
  assert np.abs(np.log(height / width)).max() < np.log(4 / 3) + 1e-3
  # Nothing comes from outside of the image; all of its parts can be cropped.
  assert cropped[..., :2].min() > 0.0
  assert cropped[:, 0, 0, 0].max() > 0.3
  assert cropped[:, -1, -1, 0].max() > 0.95


def test_a_resized_crop_of_the_whole_area_keeps_one_side_whole():
  cropped = np.asarray(augment.resized_crop(KEY, ramp(), 1.0))
  slopes = [12 * np.diff(cropped[:, 2:-2, 2:-2, c], axis=c + 1) for c in (0, 1)]
  sides = np.stack([s[:, 0, 0] for s in slopes])
  np.testing.assert_allclose(sides.max(0), 1.0, rtol=1e-3)
  assert sides.min() < 0.9


def test_without_color_only_brightness_and_contrast_change():
  grey = jax.random.uniform(KEY, (200, 6, 6, 1))
  changed = np.asarray(augment.colour_jitter(KEY, 0.5 * grey, 0.4))
  # Both together are a linear function of gray levels within the range.
  for old, new in zip(0.5 * np.asarray(grey), changed):
    old, new = old.ravel(), new.ravel()
    fair = (new > 0.0) & (new < 1.0)
    slope, offset = np.polyfit(old[fair], new[fair], 1)
    np.testing.assert_allclose(slope * old[fair] + offset, new[fair], atol=1e-4)
    assert 0.3 < slope < 2.0
  np.testing.assert_allclose(
    augment.colour_jitter(KEY, grey, 0.0), grey, atol=1e-6
  )
  np.testing.assert_array_equal(augment.luminance(grey), grey)


def test_hue_rotates_about_the_gray_axis():
  images = jax.random.uniform(KEY, (50, 4, 4, 3), minval=0.3, maxval=0.7)
  third = augment._turn_hue(images, jnp.full(50, 1 / 3))
  # A third of the circle exchanges the three channels.
  np.testing.assert_allclose(third, jnp.roll(images, 1, -1), atol=1e-5)
  grey = jnp.broadcast_to(images[..., :1], images.shape)
  turned = augment._turn_hue(grey, jnp.linspace(-0.5, 0.5, 50))
  np.testing.assert_allclose(turned, grey, atol=1e-5)


def test_jittered_colors_stay_in_range_and_differ_by_image():
  image = jnp.array([0.9, 0.1, 0.4]).reshape(1, 1, 1, 3)
  many = jnp.broadcast_to(image, (300, 4, 4, 3))
  changed = np.asarray(augment.colour_jitter(KEY, many, 0.4))
  assert changed.min() >= 0.0
  assert changed.max() <= 1.0
  assert len(np.unique(changed[:, 0, 0].round(5), axis=0)) > 250
  np.testing.assert_allclose(
    augment.colour_jitter(KEY, many, 0.0), many, atol=1e-5
  )


def test_luminance_by_hand():
  image = jnp.array([1.0, 0.5, 0.25]).reshape(1, 1, 1, 3)
  expected = 0.299 + 0.587 * 0.5 + 0.114 * 0.25
  np.testing.assert_allclose(augment.luminance(image), expected, rtol=1e-5)


def test_a_blur_spreads_a_point_and_darkens_no_edge():
  flat = jnp.ones((20, 64, 64, 3))
  blurred = augment.gaussian_blur(KEY, flat)
  np.testing.assert_allclose(blurred, 1.0, rtol=1e-5)
  point = jnp.zeros((400, 224, 1, 1)).at[:, 112].set(1.0)
  spread = np.asarray(augment.gaussian_blur(KEY, point))[:, :, 0, 0]
  np.testing.assert_allclose(spread.sum(1), 1.0, atol=1e-3)
  offsets = np.arange(224) - 112
  deviations = np.sqrt((spread * offsets[None] ** 2).sum(1))
  assert deviations.min() < 0.2
  assert 1.8 < deviations.max() < 2.05
  small = jnp.zeros((50, 28, 1, 1)).at[:, 14].set(1.0)
  # In proportion to the size: a quarter of a pixel at most at an eighth.
  assert augment.gaussian_blur(KEY, small)[:, 14].min() > 0.9


def test_strong_views_have_the_given_options():
  images = jax.random.uniform(KEY, (400, 8, 8, 3))
  nothing = dict(colour=0.0, grey=0.0, blur=0.0, flip=False)
  plain = augment.strong(KEY, images, smallest_crop=0.2, **nothing)
  crops = augment.resized_crop(jax.random.split(KEY, 7)[0], images, 0.2)
  np.testing.assert_allclose(plain, crops, atol=1e-5)
  options = {**nothing, "grey": 0.2}
  grey = np.asarray(augment.strong(KEY, images, **options))
  no_colour = (np.ptp(grey, axis=-1) < 1e-6).all((1, 2))
  assert no_colour.mean() == pytest.approx(0.2, abs=0.06)
  options = {**nothing, "colour": 0.4}
  jittered = np.asarray(augment.strong(KEY, images, **options))
  changed = (np.abs(jittered - np.asarray(plain)) > 1e-4).any((1, 2, 3))
  assert changed.mean() == pytest.approx(0.8, abs=0.06)
  options = {**nothing, "flip": True}
  flipped = np.asarray(augment.strong(KEY, images, **options))
  same = (np.abs(flipped - np.asarray(plain)) < 1e-5).all((1, 2, 3))
  assert same.mean() == pytest.approx(0.5, abs=0.1)
  # Images of one channel stay finite and in [0, 1].
  digit = np.asarray(augment.strong(KEY, images[..., :1]))
  assert digit.shape == (400, 8, 8, 1)
  assert digit.min() >= 0.0 and digit.max() <= 1.0 + 1e-6
