"""Shaded shapes, the image prior of target fitting."""

import jax
import numpy as np
import pytest

from dfkt_jax import augment
from dfkt_jax.synthesis import shapes

KEY = jax.random.key(2)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 24, 3)])
def test_shapes_are_smooth_differ_and_have_black_around(shape):
  draw = jax.jit(shapes.shaded_shapes, static_argnums=(1, 2))
  x = np.asarray(draw(KEY, 400, shape))
  assert x.shape == (400, *shape)
  assert x.min() >= 0.0
  assert x.max() <= 1.0
  # It would be 1/3 for uniform noise.
  assert np.abs(np.diff(x, axis=1)).mean() < 0.1
  assert (x < 0.1).mean() > 0.2
  assert x.mean((1, 2, 3)).std() > 0.05
  mirrored = np.abs(x - x[:, :, ::-1]).max((1, 2, 3)) < 1e-5
  assert mirrored.mean() == pytest.approx(shapes.MIRRORED, abs=0.1)


def test_noise_has_unit_gaussians_at_its_grid():
  # A cell for each pixel: nothing is interpolated.
  x = np.asarray(augment.smooth_noise(KEY, 500, [8, 8], (8,)))
  assert x.mean() == pytest.approx(0.0, abs=0.02)
  assert x.std() == pytest.approx(1.0, abs=0.02)
  rough = np.abs(np.diff(x, axis=2)).mean()
  smooth = np.asarray(augment.smooth_noise(KEY, 500, [8, 8], (2,)))
  assert np.abs(np.diff(smooth, axis=2)).mean() < 0.4 * rough
