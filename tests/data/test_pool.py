"""Pools: any image is decoded once, in chunks, never all in memory."""

import io
import os
from pathlib import Path
import pickle
import resource
import shutil
import zipfile

import numpy as np
from PIL import Image
import pytest

from dfkt_jax.data import pool as pools
from dfkt_jax.data.chunked import ChunkedArray, save_npy
from dfkt_jax.data.pool import open_pool
from dfkt_jax.errors import UsageError

SHAPE = (8, 8, 3)


def encoded(size, mode="RGB", value=200, kind="PNG"):
  buffer = io.BytesIO()
  color = value if mode == "L" else (value, 10, 20)
  Image.new(mode, size, color).save(buffer, kind)
  return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
  """Images of several sizes, modes and depths, and a broken one."""
  directory = tmp_path / "photographs"
  files = {
    "deep/down/a.png": encoded((20, 10)),
    "b.jpg": encoded((7, 30), kind="JPEG"),
    "deep/gray.png": encoded((9, 9), "L", 77),
    "broken.png": b"not an image",
    "notes.txt": b"without the suffix of an image",
  }
  for name, data in files.items():
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)
  return directory


def no_log(text):
  return None


def test_images_of_any_kind_are_decoded_to_one_shape(folder, tmp_path):
  lines = []
  pool = open_pool(f"folder:{folder}", SHAPE, tmp_path / "c", log=lines.append)
  names = [pool.names[i] for i in range(len(pool))]
  assert names == ["b.jpg", "deep/gray.png", "deep/down/a.png"]
  assert pool.images.shape == (3, *SHAPE)
  assert (pool.images[1] == 77).all()
  assert (pool.images[2] == [200, 10, 20]).all()
  assert pool.left_out == 1
  assert len(lines) == 1
  assert "1 of 4 images cannot be read" in lines[0]
  assert "broken.png" in lines[0]


def test_color_images_in_one_channel_are_their_luma(folder, tmp_path):
  pool = open_pool(f"folder:{folder}", (8, 8, 1), tmp_path / "c", log=no_log)
  luma = round(0.299 * 200 + 0.587 * 10 + 0.114 * 20)
  assert abs(int(pool.images[2][0, 0, 0]) - luma) <= 1


def test_a_zip_file_and_an_array_make_the_same_pool(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
  np.savez(tmp_path / "a.npz", images=images)
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for index, image in enumerate(images):
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "PNG")
      archive.writestr(f"{index:02d}.png", buffer.getvalue())
  for text in (f"npz:{tmp_path / 'a.npz'}", f"zip:{tmp_path / 'a.zip'}"):
    pool = open_pool(text, SHAPE, tmp_path / "c", log=no_log)
    np.testing.assert_array_equal(pool.images[:], images)
  few = open_pool(f"{text}[2:5]", SHAPE, tmp_path / "c", log=no_log)
  np.testing.assert_array_equal(few.images[:], images[2:5])
  assert few.names[0] == "02.png"


@pytest.fixture
def numbered(tmp_path, monkeypatch):
  """Forty images in chunks of ten."""
  images = np.zeros((40, *SHAPE), np.uint8)
  images[:, 0, 0, 0] = np.arange(40)
  np.savez(tmp_path / "n.npz", images=images)
  monkeypatch.setattr(pools, "CHUNK_BYTES", 10 * images[0].size)
  return f"npz:{tmp_path / 'n.npz'}"


def test_rows_of_all_chunks_are_found(numbered, tmp_path):
  pool = open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  index = np.array([39, 0, 17, 17, 20])
  np.testing.assert_array_equal(pool.images[index][:, 0, 0, 0], index)
  np.testing.assert_array_equal(pool.images[8:22][:, 0, 0, 0], range(8, 22))
  assert pool.images[-1][0, 0, 0] == 39
  assert pool.names.take(index) == [f"{i:08d}" for i in index]
  with pytest.raises(IndexError):
    pool.images[40]


def test_pixels_stay_on_disk(numbered, tmp_path):
  pool = open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  assert isinstance(pool.images._chunk(3), np.memmap)
  again = pickle.loads(pickle.dumps(pool))
  assert isinstance(again.images._chunk(3), np.memmap)
  np.testing.assert_array_equal(again.images[:], pool.images[:])
  assert again.names[39] == pool.names[39]


def test_there_may_be_more_chunks_than_open_files(tmp_path):
  paths = [tmp_path / f"{chunk}.npy" for chunk in range(200)]
  for number, path in enumerate(paths):
    save_npy(path, np.full((1, 2), number))
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  used = len(os.listdir("/dev/fd"))
  resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, limits[1]))
  try:
    rows = ChunkedArray(paths)[::-1]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert rows[:, 1].tolist() == [*range(200)][::-1]


def damage(path):
  path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
  "harm", [os.remove, damage, lambda p: p.write_bytes(b"")]
)
@pytest.mark.parametrize("suffix", ["npy", "txt", "json"])
def test_a_damaged_chunk_is_decoded_again(numbered, tmp_path, suffix, harm):
  pool = open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  harm(pool.cache / f"00002.{suffix}")
  untouched = (pool.cache / "00001.npy").stat().st_mtime_ns
  again = open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  np.testing.assert_array_equal(again.images[:][:, 0, 0, 0], range(40))
  assert again.names[25] == "00000025"
  assert again.fingerprint == pool.fingerprint
  assert (pool.cache / "00001.npy").stat().st_mtime_ns == untouched


def test_the_fingerprint_depends_on_pixels_shape_and_names(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")

  def fingerprint(directory, shape=SHAPE, cache="c"):
    text = f"folder:{directory}"
    return open_pool(text, shape, tmp_path / cache, log=no_log).fingerprint

  before = fingerprint(folder)
  assert before == fingerprint(folder)
  assert before == fingerprint(folder, cache="other")
  assert before == fingerprint(copy)
  assert before != fingerprint(folder, (8, 4, 3))
  os.rename(copy / "b.jpg", copy / "c.jpg")
  assert before != fingerprint(copy)
  (folder / "b.jpg").write_bytes(encoded((7, 30), value=9, kind="JPEG"))
  assert before != fingerprint(folder)


def test_an_unreadable_file_stops_the_pool(folder, tmp_path, monkeypatch):
  """Fail to read a file once, as a disk does that works again later."""
  read = Path.read_bytes

  def fail(path):
    if path.name == "b.jpg":
      raise OSError(5, "Input/output error")
    return read(path)

  text = f"folder:{folder}"
  with monkeypatch.context() as patch:
    patch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UsageError, match="b.jpg cannot be read") as error:
      open_pool(text, SHAPE, tmp_path / "c", log=no_log)
  assert "\n" not in str(error.value)
  pool = open_pool(text, SHAPE, tmp_path / "c", log=no_log)
  assert len(pool) == 3


def test_a_decoding_that_was_stopped_continues(numbered, tmp_path, monkeypatch):
  decode = pools._decode_chunk
  decoded = []

  def stop_at_the_third(source, shape, indices, path, workers):
    if len(decoded) == 2:
      raise KeyboardInterrupt
    decoded.append(indices)
    decode(source, shape, indices, path, workers)

  monkeypatch.setattr(pools, "_decode_chunk", stop_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  rest = []
  monkeypatch.setattr(
    pools,
    "_decode_chunk",
    lambda *args: rest.append(args[2]) or decode(*args),
  )
  pool = open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  assert rest == [range(20, 30), range(30, 40)]
  np.testing.assert_array_equal(pool.images[:][:, 0, 0, 0], range(40))
  # Now every chunk exists.
  open_pool(numbered, SHAPE, tmp_path / "c", log=no_log)
  assert len(rest) == 2


def test_a_source_that_changed_is_decoded_again(folder, tmp_path):
  text, cache = f"folder:{folder}", tmp_path / "c"
  before = open_pool(text, SHAPE, cache, log=no_log)
  changed = folder / "b.jpg"
  changed.write_bytes(encoded((8, 8), value=10, kind="JPEG"))
  os.utime(changed, (1, 1))
  after = open_pool(text, SHAPE, cache, log=no_log)
  assert before.cache != after.cache
  assert (before.images[0] != after.images[0]).any()


@pytest.mark.parametrize(
  ("make", "part"),
  [
    (lambda p: f"folder:{p}", "holds no image"),
    (lambda p: f"zip:{p}/none.zip", "does not exist"),
    (lambda p: f"zip:{__file__}", "expected a whole zip file"),
    (lambda p: f"npz:{p}/none.npz", "does not exist"),
    (lambda p: "photographs", "is unknown"),
    (lambda p: "folder:", "has nothing after the colon"),
    (lambda p: "zip:[:5]", "has nothing after the colon"),
    (lambda p: "digits/test[:10%]", "whole numbers with a colon"),
  ],
)
def test_texts_that_are_not_a_pool_are_refused(tmp_path, make, part):
  with pytest.raises(UsageError, match=part):
    open_pool(make(tmp_path), SHAPE, tmp_path / "c", log=no_log)


def test_a_pool_of_only_broken_images_is_refused(tmp_path):
  (tmp_path / "x.png").write_bytes(b"nothing")
  with pytest.raises(UsageError, match="all of its 1 images are broken"):
    open_pool(f"folder:{tmp_path}", SHAPE, tmp_path / "c", log=no_log)
