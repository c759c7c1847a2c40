"""Padded batches of one shape."""

import numpy as np
import pytest

from dfkt_jax import data


def test_padded_batches_have_one_shape():
  images = np.arange(7 * 4, dtype=np.uint8).reshape(7, 2, 2, 1)
  labels = np.arange(7, dtype=np.int32)
  batches = list(data.padded_batches(images, labels, 3))
  assert [mask.sum() for _, _, mask in batches] == [3, 3, 1]
  assert {x.shape for x, _, _ in batches} == {(3, 2, 2, 1)}
  seen = np.concatenate([y[mask] for _, y, mask in batches])
  np.testing.assert_array_equal(seen, labels)


@pytest.mark.parametrize(("labels", "size"), [(3, 2), (4, 0)])
def test_padded_batches_refuse_bad_sizes(labels, size):
  images = np.zeros((4, 2, 2, 1), np.uint8)
  with pytest.raises(ValueError, match=f"4 images, {labels} labels"):
    next(data.padded_batches(images, np.zeros(labels, np.int32), size))
