"""Selection of idx files in a folder, and the datasets with fixed names."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from dfkt_jax import data
from dfkt_jax.data import idx
from dfkt_jax.errors import UsageError

FILES = {
  "plain": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
  "dotted": ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
  "prefix": (
    "kmnist-train-images-idx3-ubyte",
    "kmnist-train-labels-idx1-ubyte",
  ),
}


def write(folder, names, count=2):
  images = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
  for name, array in zip(names, (images, np.arange(count, dtype=np.uint8))):
    head = bytes([0, 0, 8, array.ndim])
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    (folder / name).write_bytes(head + sizes + array.tobytes())


@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
def test_usual_file_names_are_found(tmp_path, names):
  write(tmp_path, names)
  assert data.load(f"idx:{tmp_path}/train").images.shape == (2, 2, 3, 1)


def test_two_pairs_of_files_are_refused(tmp_path):
  write(tmp_path, FILES["plain"])
  write(tmp_path, FILES["prefix"])
  with pytest.raises(UsageError) as error:
    data.load(f"idx:{tmp_path}/train")
  for part in (
    "2 files of train images",
    FILES["plain"][0],
    FILES["prefix"][0],
  ):
    assert part in str(error.value)


def test_the_split_of_the_digits_never_changes():
  test = data.load("digits/test")
  digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes())
  assert digest.hexdigest()[:16] == "cf52d31ab3f645e8"
  assert test.class_names == tuple("0123456789")


def test_fashion_mnist_is_read_from_the_debian_package():
  if not idx.FASHION_MNIST.is_dir():
    pytest.skip("dataset-fashion-mnist is not installed (apt-get)")
  dataset = data.load("fashion_mnist")
  assert dataset.images.shape == (10_000, 28, 28, 1)
  assert np.bincount(dataset.labels).tolist() == [1000] * 10


def test_heavy_packages_are_imported_only_when_needed():
  code = (
    "import sys, dfkt_jax.data; heavy = {'PIL', 'sklearn', 'grain',"
    " 'tensorflow_datasets'}; sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")
