"""Loading of datasets by text, and the messages for what cannot be read."""

import gzip
import io
import zipfile

import numpy as np
from PIL import Image
import pytest

from dfkt_jax import data
from dfkt_jax.data import shards
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Classification, InputSpec
from tests.assets import shared_data


def refused(text, *parts, size=None):
  with pytest.raises(UsageError) as error:
    data.load(text, size)
  for part in parts:
    assert part in str(error.value)


def png(shape=(6, 4), level=7, mode="RGB"):
  buffer = io.BytesIO()
  Image.new(mode, shape[::-1], level if mode == "L" else (level,) * 3).save(
    buffer, "PNG"
  )
  return buffer.getvalue()


def test_the_split_of_the_digits_is_balanced_and_fixed():
  train, test = data.load("digits/train"), data.load("digits/test")
  assert train.images.shape == (1297, 8, 8, 1)
  assert test.images.shape == (500, 8, 8, 1)
  assert np.bincount(test.labels).tolist() == [50] * 10
  assert test.images.max() == 255
  train_images = {image.tobytes() for image in train.images}
  shared = sum(image.tobytes() in train_images for image in test.images)
  assert shared == 0
  # A later version must not move an image to the other split.
  assert test.labels[:12].tolist() == FIRST_LABELS
  np.testing.assert_array_equal(data.load("digits").labels, test.labels)


def test_printed_digits_of_a_class_are_similar():
  train, test = data.load("fonts/train"), data.load("fonts/test")
  assert train.images.shape == (2000, 8, 8, 1)
  assert train.images.dtype == np.uint8
  assert np.bincount(test.labels).tolist() == [50] * 10
  np.testing.assert_array_equal(train.images, data.load("fonts/train").images)
  train_rows = train.images.reshape(2000, -1).astype(float)
  test_rows = test.images.reshape(500, -1).astype(float)
  means = np.stack(
    [train_rows[train.labels == digit].mean(0) for digit in range(10)]
  )
  distances = np.square(test_rows[:, None] - means).sum(-1)
  assert (distances.argmin(1) == test.labels).mean() > 0.8


FIRST_LABELS = [2, 2, 3, 0, 8, 0, 8, 4, 7, 0, 8, 3]


def test_a_slice_selects_images():
  whole = data.load("digits/test")
  part = data.load("digits/test[10:20]")
  np.testing.assert_array_equal(part.labels, whole.labels[10:20])
  assert len(data.load("digits/train[-7:]").labels) == 7
  refused("digits[600:]", "has no image", "500")


@pytest.mark.parametrize(
  ("text", "parts"),
  [
    ("digit", ["did you mean digits?"]),
    ("cifar10", ["unknown", "npz:FILE"]),
    ("npz:", ["unknown"]),
    ("digits:x", ["unknown"]),
    ("digits/valid", ["no split 'valid'", "/train or /test"]),
    ("npz:nowhere.npz", ["nowhere.npz does not exist"]),
    ("folder:nowhere", ["nowhere is not a folder"]),
    ("zip:nowhere.zip", ["nowhere.zip does not exist"]),
    ("idx:nowhere", ["nowhere is not a folder"]),
    ("tfds:no_such_set", ["no_such_set"]),
  ],
)
def test_unknown_texts_are_refused(text, parts):
  refused(text, *parts)


def test_npz_files_are_read(tmp_path):
  path = tmp_path / "a.npz"
  images = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
  train = np.array([True, True, True, False, False])
  np.savez(path, images=images, labels=[0, 1, 2, 0, 1], train=train)
  assert data.load(f"npz:{path}").images.shape == (2, 2, 3, 1)
  assert data.load(f"npz:{path}/train").labels.tolist() == [0, 1, 2]
  assert data.load(f"npz:{path}/test[1:]").labels.tolist() == [1]


@pytest.mark.parametrize(
  ("arrays", "part"),
  [
    ({"x": np.zeros(3)}, "holds x"),
    ({"images": np.zeros((2, 2, 2), np.uint8), "labels": [0]}, "labels"),
    ({"images": np.zeros((1, 2, 2)), "labels": [0]}, "float64"),
    ({"images": np.zeros((1, 2, 2), np.uint8), "labels": [-1]}, "label -1"),
    ({"images": np.zeros((1, 2, 2), np.uint8), "labels": [0.5]}, "float64"),
    (
      {"images": np.zeros((1, 2), object), "labels": [0]},
      "is not a whole .npz file",
    ),
  ],
)
def test_npz_files_with_other_arrays_are_refused(tmp_path, arrays, part):
  path = tmp_path / "a.npz"
  np.savez(path, allow_pickle=True, **arrays)
  refused(f"npz:{path}", "a.npz", part, "expected images uint8")


def test_npz_files_without_a_split_or_cut_short_are_refused(tmp_path):
  path = tmp_path / "a.npz"
  images = np.zeros((1, 2, 2), np.uint8)
  np.savez(path, images=images, labels=[0])
  refused(f"npz:{path}/test", "no split 'test'", "expected an array 'train'")
  path.write_bytes(path.read_bytes()[:100])
  refused(f"npz:{path}", "a.npz is not a whole .npz file")


def idx(array):
  head = bytes([0, 0, 8, array.ndim])
  return (
    head
    + b"".join(n.to_bytes(4, "big") for n in array.shape)
    + (array.astype(np.uint8).tobytes())
  )


def test_idx_files_are_read_or_refused(tmp_path):
  images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
  (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
  labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
  labels.write_bytes(gzip.compress(idx(np.array([4, 5, 6]))))
  dataset = data.load(f"idx:{tmp_path}")
  np.testing.assert_array_equal(dataset.images[..., 0], images)
  assert dataset.labels.tolist() == [4, 5, 6]
  refused(f"idx:{tmp_path}/train", "0 files of train images", "t10k-images")
  whole = labels.read_bytes()
  labels.write_bytes(whole[:-9])
  refused(f"idx:{tmp_path}", "labels-idx1", "expected a whole gzip file")
  labels.write_bytes(gzip.compress(idx(np.array([4, 5]))))
  refused(f"idx:{tmp_path}", "2 labels for 3 images")
  labels.write_bytes(gzip.compress(idx(images)))
  refused(f"idx:{tmp_path}", "begins with 00000803")
  labels.write_bytes(gzip.compress(idx(np.array([4, 5, 6]))[:-1]))
  refused(f"idx:{tmp_path}", "2 bytes for [3]")


def test_the_message_for_missing_fashion_mnist_helps(tmp_path, monkeypatch):
  monkeypatch.setenv("DFKT_FASHION_MNIST", str(tmp_path / "none"))
  refused("fashion_mnist", "apt-get install dataset-fashion-mnist")
  monkeypatch.setenv("DFKT_FASHION_MNIST", str(tmp_path))
  images = np.zeros((2, 28, 28))
  (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
  (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([9, 0])))
  assert data.load("fashion_mnist/test").class_names[9] == "Ankle boot"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_image_files_are_read(tmp_path, kind):
  members = {"b/1.png": png(), "a/2.PNG": png(mode="L"), "b/0.png": png()}
  if kind == "folder":
    location = tmp_path / "images"
    for name, raw in members.items():
      (location / name).parent.mkdir(parents=True, exist_ok=True)
      (location / name).write_bytes(raw)
  else:
    location = tmp_path / "images.zip"
    with zipfile.ZipFile(location, "w") as archive:
      for name, raw in members.items():
        archive.writestr(name, raw)
  dataset = data.load(f"{kind}:{location}")
  assert dataset.images.shape == (3, 6, 4, 3)
  assert dataset.labels.tolist() == [0, 1, 1]
  assert dataset.class_names == ("a", "b")
  assert data.load(f"{kind}:{location}", (8, 8)).images.shape == (3, 8, 8, 3)
  assert (data.load(f"{kind}:{location}", (8, 8)).images == 7).all()


def write_zip(path, **members):
  with zipfile.ZipFile(path, "w") as archive:
    for name, raw in members.items():
      archive.writestr(name.replace("__", "/") + ".png", raw)


def test_unsuitable_image_files_are_refused(tmp_path):
  path = tmp_path / "z.zip"
  write_zip(path)
  refused(f"zip:{path}", "z.zip holds no images")
  write_zip(path, a__x=png(), b__y=png((5, 5)))
  refused(f"zip:{path}", "2 sizes", "(5, 5)")
  assert data.load(f"zip:{path}", (4, 4)).images.shape == (2, 4, 4, 3)
  write_zip(path, a__x=png(), b__y=png()[:40])
  refused(f"zip:{path}", "b/y.png cannot be read")
  write_zip(path, a__x=png(), y=png())
  refused(f"zip:{path}", "some images have no class")
  path.write_bytes(b"not a zip file")
  refused(f"zip:{path}", "expected a whole, unencrypted zip file")


def test_a_number_before_a_name_is_the_class(tmp_path):
  path = tmp_path / "z.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("0003_dog.png", png())
    archive.writestr("0001_cat.png", png())
  assert data.load(f"zip:{path}").labels.tolist() == [1, 3]


@pytest.mark.parametrize("names", [(), ("cat", "dog", "eel")])
def test_tfds_reads_synthesized_datasets(tmp_path, names):
  spec = InputSpec(6, 4, 3, (0.5,) * 3, (0.2,) * 3, Classification(3, names))
  layout = shards.Layout(tmp_path / "set", 2, spec)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
  labels = np.array([0, 2, 1, 1, 0], np.int32)
  shards.write(layout, 0, images[:3], labels[:3])
  shards.write(layout, 1, images[3:], labels[3:])
  refused(f"tfds:{tmp_path / 'set'}", "set")
  shards.finish(layout, [3, 2])
  dataset = data.load(f"tfds:{tmp_path / 'set'}")
  np.testing.assert_array_equal(dataset.images, images)
  np.testing.assert_array_equal(dataset.labels, labels)
  assert dataset.class_names == names
  refused(f"tfds:{tmp_path / 'set'}/test", "no split 'test'", "train")


def test_real_files_are_read():
  usps = data.load(f"npz:{shared_data('usps.npz')}/test")
  assert usps.images.shape == (2007, 16, 16, 1)
  folder = shared_data("mnist-t10k-images-idx3-ubyte.gz").parent
  mnist = data.load(f"idx:{folder}")
  assert mnist.images.shape == (10_000, 28, 28, 1)
  photos = data.load(f"zip:{shared_data('imagenet_sample_200.zip')}")
  assert photos.images.shape == (200, 256, 256, 3)
  assert photos.labels[0] == 0


def test_resizing_changes_size_and_channels():
  rng = np.random.default_rng(0)
  gray = rng.integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
  dataset = data.Dataset("made", gray, np.zeros(3, np.int32))
  assert data.resize(dataset, 16, 16, 1) is dataset
  rgb = data.resize(dataset, 16, 16, 3)
  for channel in range(3):
    np.testing.assert_array_equal(rgb.images[..., channel], gray[..., 0])
  back = data.resize(rgb, 16, 16, 1)
  np.testing.assert_array_equal(back.images, gray)
  flat = data.Dataset("made", np.full_like(gray, 90), dataset.labels)
  assert (data.resize(flat, 7, 5, 1).images == 90).all()
  # With antialiasing, an image of alternate columns is halved to its mean.
  stripes = np.zeros((1, 8, 8, 1), np.uint8)
  stripes[:, :, ::2] = 200
  halved = data.resize(
    data.Dataset("made", stripes, np.zeros(1, np.int32)), 4, 4, 1
  )
  assert np.abs(halved.images[:, :, 1:-1].astype(int) - 100).max() < 30
