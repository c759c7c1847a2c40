"""scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 gray levels."""

from typing import Any

import numpy as np

from dfkt_jax.data.dataset import Dataset

HELD_OUT = 500


def read(name: str, split: str) -> Dataset:
  """Return `train` (1,297) or `test` (500): a fixed, class-balanced split."""
  from sklearn.datasets import load_digits

  digits: Any = load_digits()
  images = np.round(digits["images"] / 16 * 255).astype(np.uint8)[..., None]
  labels = digits["target"].astype(np.int32)
  held_out = _held_out(labels)
  rows = held_out if split == "test" else ~held_out
  names = tuple(str(digit) for digit in range(10))
  return Dataset(name, images[rows], labels[rows], names)


def _held_out(labels: np.ndarray) -> np.ndarray:
  """Return bool[n], the first 50 of each class in a fixed random order."""
  order = np.random.default_rng(0).permutation(len(labels))
  held_out = np.zeros(len(labels), bool)
  for digit in range(10):
    held_out[order[labels[order] == digit][: HELD_OUT // 10]] = True
  return held_out
