"""Grids have their tiles in order, and PNG files keep the pixels."""

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dfkt_jax.images import grid, save_png


def test_tiles_are_in_rows_with_padding():
  tiles = np.arange(5, dtype=np.uint8)[:, None, None, None] * 10
  tiles = np.broadcast_to(tiles, (5, 32, 40, 3))
  picture = grid(tiles, columns=3, pad=2)
  assert picture.shape == (2 * 34 + 2, 3 * 42 + 2, 3)
  assert picture.dtype == np.uint8
  for index in range(5):
    top, left = 2 + index // 3 * 34, 2 + index % 3 * 42
    tile = picture[top : top + 32, left : left + 40]
    assert (tile == index * 10).all()
  # The empty sixth tile and the padding are background.
  assert (picture[36:68, 86:126] == 128).all()
  assert (picture[:2] == 128).all()


def test_small_gray_images_are_enlarged_and_become_rgb():
  images = np.zeros((4, 8, 8, 1), np.float32)
  images[0, 0, 0] = 1.0
  picture = grid(images, pad=1)
  assert picture.shape == (2 * 33 + 1, 2 * 33 + 1, 3)
  assert (picture[1:5, 1:5] == 255).all()
  assert (picture[1:5, 5:9] == 0).all()
  assert grid(images, scale=1, pad=0).shape == (16, 16, 3)
  assert grid(np.zeros((1, 28, 28, 1)), pad=0).shape == (56, 56, 3)
  assert grid(np.zeros((1, 64, 48, 3)), pad=0).shape == (64, 48, 3)


def test_floats_are_rounded_and_clipped_and_nan_is_black():
  values = [-1.0, 0.5, 0.999, 7.0, np.nan, 1 / 255]
  images = np.array(values, np.float32).reshape(6, 1, 1, 1)
  picture = grid(images, columns=6, pad=0, scale=1)
  assert picture[0, :, 0].tolist() == [0, 128, 255, 255, 0, 1]
  device = jnp.full((1, 32, 32, 3), 0.5, jnp.bfloat16)
  assert (grid(device, pad=0) == 128).all()


@pytest.mark.parametrize(
  "images",
  [
    np.zeros((8, 8, 3)),
    np.zeros((2, 8, 8, 4)),
    np.zeros((0, 8, 8, 3)),
    np.zeros((2, 8, 8, 3), np.int32),
  ],
)
def test_arrays_that_are_not_images_are_refused(images):
  with pytest.raises(ValueError, match="images"):
    grid(images)


def test_a_grid_needs_at_least_one_column():
  with pytest.raises(ValueError, match="columns=-1"):
    grid(np.zeros((1, 8, 8, 1)), columns=-1)


def test_a_png_file_keeps_the_pixels(tmp_path):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (9, 7, 3), np.uint8)
  save_png(tmp_path / "images" / "a.png", picture)
  with Image.open(tmp_path / "images" / "a.png") as image:
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), picture)
  assert [p.name for p in (tmp_path / "images").iterdir()] == ["a.png"]
