"""Pools: any image, decoded once, in parts, never as a whole in memory."""

import io
import os
import zipfile

import numpy as np
from PIL import Image
import pytest

from dfkt_jax.data import pool as pools
from dfkt_jax.data.pool import open_pool
from dfkt_jax.errors import UsageError

SHAPE = (8, 8, 3)


def encoded(size, mode="RGB", value=200, kind="PNG"):
  buffer = io.BytesIO()
  colour = value if mode == "L" else (value, 10, 20)
  Image.new(mode, size, colour).save(buffer, kind)
  return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
  """Images of several sizes, modes and depths, and one that is none."""
  place = tmp_path / "photographs"
  files = {
    "deep/down/a.png": encoded((20, 10)),
    "b.jpg": encoded((7, 30), kind="JPEG"),
    "deep/grey.png": encoded((9, 9), "L", 77),
    "broken.png": b"no image",
    "notes.txt": b"no image by its name",
  }
  for name, data in files.items():
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)
  return place


def quietly(text):
  return None


def test_images_of_any_kind_come_out_at_one_shape(folder, tmp_path):
  said = []
  pool = open_pool(f"folder:{folder}", SHAPE, tmp_path / "c", say=said.append)
  names = [pool.names[i] for i in range(len(pool))]
  assert names == ["b.jpg", "deep/grey.png", "deep/down/a.png"]
  assert pool.images.shape == (3, *SHAPE)
  assert (pool.images[1] == 77).all()
  assert (pool.images[2] == [200, 10, 20]).all()
  assert pool.left_out == 1
  assert len(said) == 1
  assert "1 of 4 images cannot be read" in said[0]
  assert "broken.png" in said[0]


def test_one_channel_of_colour_is_its_luma(folder, tmp_path):
  pool = open_pool(f"folder:{folder}", (8, 8, 1), tmp_path / "c", say=quietly)
  luma = round(0.299 * 200 + 0.587 * 10 + 0.114 * 20)
  assert abs(int(pool.images[2][0, 0, 0]) - luma) <= 1


def test_a_zip_file_and_an_array_are_the_same_pool(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
  np.savez(tmp_path / "a.npz", images=images)
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for index, image in enumerate(images):
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "PNG")
      archive.writestr(f"{index:02d}.png", buffer.getvalue())
  for text in (f"npz:{tmp_path / 'a.npz'}", f"zip:{tmp_path / 'a.zip'}"):
    pool = open_pool(text, SHAPE, tmp_path / "c", say=quietly)
    np.testing.assert_array_equal(pool.images[:], images)
  few = open_pool(f"{text}[2:5]", SHAPE, tmp_path / "c", say=quietly)
  np.testing.assert_array_equal(few.images[:], images[2:5])
  assert few.names[0] == "02.png"


@pytest.fixture
def numbered(tmp_path, monkeypatch):
  """Forty images in parts of ten."""
  images = np.zeros((40, *SHAPE), np.uint8)
  images[:, 0, 0, 0] = np.arange(40)
  np.savez(tmp_path / "n.npz", images=images)
  monkeypatch.setattr(pools, "PART_BYTES", 10 * images[0].size)
  return f"npz:{tmp_path / 'n.npz'}"


def test_rows_of_all_parts_are_found(numbered, tmp_path):
  pool = open_pool(numbered, SHAPE, tmp_path / "c", say=quietly)
  index = np.array([39, 0, 17, 17, 20])
  np.testing.assert_array_equal(pool.images[index][:, 0, 0, 0], index)
  np.testing.assert_array_equal(pool.images[8:22][:, 0, 0, 0], range(8, 22))
  assert pool.images[-1][0, 0, 0] == 39
  assert pool.names.take(index) == [f"{i:08d}" for i in index]
  with pytest.raises(IndexError):
    pool.images[40]


def test_pixels_stay_on_disk(numbered, tmp_path):
  pool = open_pool(numbered, SHAPE, tmp_path / "c", say=quietly)
  assert len(pool.images._maps) == 4
  assert all(isinstance(part, np.memmap) for part in pool.images._maps)


def test_a_decoding_that_was_stopped_goes_on(numbered, tmp_path, monkeypatch):
  decode = pools._decode_part
  decoded = []

  def stop_at_the_third(source, shape, indices, path, workers):
    if len(decoded) == 2:
      raise KeyboardInterrupt
    decoded.append(indices)
    decode(source, shape, indices, path, workers)

  monkeypatch.setattr(pools, "_decode_part", stop_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    open_pool(numbered, SHAPE, tmp_path / "c", say=quietly)
  rest = []
  monkeypatch.setattr(
    pools,
    "_decode_part",
    lambda *args: rest.append(args[2]) or decode(*args),
  )
  pool = open_pool(numbered, SHAPE, tmp_path / "c", say=quietly)
  assert rest == [range(20, 30), range(30, 40)]
  np.testing.assert_array_equal(pool.images[:][:, 0, 0, 0], range(40))
  # And then there is nothing left to decode.
  open_pool(numbered, SHAPE, tmp_path / "c", say=quietly)
  assert len(rest) == 2


def test_a_pool_that_changed_is_decoded_anew(folder, tmp_path):
  text, cache = f"folder:{folder}", tmp_path / "c"
  before = open_pool(text, SHAPE, cache, say=quietly)
  changed = folder / "b.jpg"
  changed.write_bytes(encoded((8, 8), value=10, kind="JPEG"))
  os.utime(changed, (1, 1))
  after = open_pool(text, SHAPE, cache, say=quietly)
  assert before.cache != after.cache
  assert (before.images[0] != after.images[0]).any()


@pytest.mark.parametrize(
  ("make", "part"),
  [
    (lambda p: f"folder:{p}", "holds no image"),
    (lambda p: f"zip:{p}/none.zip", "does not exist"),
    (lambda p: f"zip:{__file__}", "is not a whole zip file"),
    (lambda p: f"npz:{p}/none.npz", "does not exist"),
    (lambda p: "photographs", "is unknown"),
  ],
)
def test_what_is_no_pool_is_refused(tmp_path, make, part):
  with pytest.raises(UsageError, match=part):
    open_pool(make(tmp_path), SHAPE, tmp_path / "c", say=quietly)


def test_a_pool_of_broken_images_alone_is_refused(tmp_path):
  (tmp_path / "x.png").write_bytes(b"nothing")
  with pytest.raises(UsageError, match="none of its 1 images can be read"):
    open_pool(f"folder:{tmp_path}", SHAPE, tmp_path / "c", say=quietly)
