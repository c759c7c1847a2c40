"""Contents of .npz files beyond the arrays that test_load.py reads."""

import numpy as np
import pytest

from dfkt_jax import data
from dfkt_jax.errors import UsageError

IMAGES = np.zeros((2, 3, 3), np.uint8)


@pytest.mark.parametrize("names", [["cat", "dog"], [b"cat", b"dog"]])
def test_class_names_are_read(tmp_path, names):
  path = tmp_path / "a.npz"
  np.savez(path, images=IMAGES, labels=[0, 1], class_names=names)
  assert data.load(f"npz:{path}").class_names == ("cat", "dog")


@pytest.mark.parametrize(
  ("arrays", "parts"),
  [
    ({"labels": [0, 2**31]}, ["label 2147483648", "expected images"]),
    (
      {"labels": np.array([0, 2**63], np.uint64)},
      ["label 9223372036854775808"],
    ),
    ({"labels": [0, 1], "class_names": "cat"}, ["class_names is <U3 []"]),
    ({"labels": [0, 1], "class_names": [1, 2]}, ["class_names is int64"]),
    (
      {"labels": [0, 1], "class_names": ["cat"]},
      ["label 1 and 1 class_names", "leave class_names out"],
    ),
    ({"labels": [0, 1], "train": [1, 0]}, ["train is int64 [2]"]),
    ({"labels": [0, 1], "images": IMAGES[:, :0]}, ["[2, 0, 3, 1]"]),
  ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, parts):
  path = tmp_path / "a.npz"
  np.savez(path, **{"images": IMAGES, **arrays})
  with pytest.raises(UsageError) as error:
    data.load(f"npz:{path}")
  for part in ["a.npz", *parts]:
    assert part in str(error.value)


def test_damaged_files_raise_only_usage_errors(tmp_path):
  path = tmp_path / "a.npz"
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
  np.savez_compressed(path, images=images, labels=np.zeros(20, int))
  whole = path.read_bytes()
  messages = []
  for position in range(0, len(whole), 61):
    damaged = bytearray(whole)
    damaged[position] ^= 0xFF
    path.write_bytes(damaged)
    # Some bytes, such as the time of a member, are not used.
    try:
      data.load(f"npz:{path}")
    except UsageError as error:
      messages.append(str(error))
  assert len(messages) > 5
  assert all("a.npz" in message for message in messages)
