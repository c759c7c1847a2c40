"""The sources of a pool's images, and their broken files."""

import io
import json
import os
from pathlib import Path
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from dfkt_jax.data import builder, sources
from dfkt_jax.data import pool as pools
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.data.pool import open_pool
from dfkt_jax.errors import UsageError

SHAPE = (4, 4, 3)


def flat(value, size=(6, 9), kind="PNG") -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(np.full(size, value, np.uint8)).save(buffer, kind)
  return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
  directory = tmp_path / "photos"
  files = {
    "b.webp": flat(90, kind="WEBP"),
    "c.png": flat(77, (8, 5)),
    "a/y.jpg": flat(200, kind="JPEG"),
    "a/deep/x.png": flat(10),
  }
  for name, raw in files.items():
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(raw)
  return directory


def no_log(_):
  pass


def names(opened):
  return [opened.names[index] for index in range(len(opened))]


def test_compressed_and_stored_members_of_a_zip_file_are_read(folder, tmp_path):
  path = tmp_path / "pool.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for file in sorted(folder.rglob("*.*")):
      compression = zipfile.ZIP_STORED if file.suffix == ".jpg" else None
      archive.write(file, file.relative_to(folder).as_posix(), compression)
  a = open_pool(f"zip:{path}", SHAPE, tmp_path / "c", workers=3)
  b = open_pool(f"folder:{folder}", SHAPE, tmp_path / "c")
  assert names(a) == sorted(names(b))
  order = [names(b).index(name) for name in names(a)]
  np.testing.assert_array_equal(a.images[:], b.images[np.array(order)])


def test_a_broken_member_of_a_zip_file_is_left_out(tmp_path):
  path = tmp_path / "pool.zip"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.png", flat(1))
    archive.writestr("b.png", flat(2))
  raw = bytearray(path.read_bytes())
  raw[raw.index(b"a.png") + 40] ^= 255
  path.write_bytes(raw)
  opened = open_pool(f"zip:{path}", SHAPE, tmp_path / "c", log=no_log)
  assert names(opened) == ["b.png"]
  card = json.loads((opened.cache / pools.CARD).read_text())
  assert (card["images"], card["left_out"]) == (1, 1)
  assert "a.png" in card["first_left_out"][0]


def test_arrays_are_read_in_place(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)
  np.savez(tmp_path / "plain", images=images)
  np.savez_compressed(tmp_path / "packed", images=images)
  for name in ("plain", "packed"):
    opened = open_pool(f"npz:{tmp_path}/{name}.npz", SHAPE, tmp_path / "c")
    np.testing.assert_array_equal(opened.images[:], images)
  source = sources.open_source(f"npz:{tmp_path / 'plain.npz'}")
  assert isinstance(source.image(0), np.memmap)


@pytest.mark.parametrize("kind", ["npz", "zip", "folder"])
def test_similar_files_make_two_pools(tmp_path, kind):
  """Open files of the same name, size and time in two folders."""
  pixels = []
  for value in (3, 4):
    directory = tmp_path / str(value)
    directory.mkdir()
    image = np.full(SHAPE, value, np.uint8)
    if kind == "npz":
      np.savez(directory / "p.npz", images=image[None])
    elif kind == "zip":
      with zipfile.ZipFile(directory / "p.zip", "w") as archive:
        archive.writestr("a.bmp", flat(value, kind="BMP"))
    else:
      (directory / "p.folder").mkdir()
      (directory / "p.folder/a.bmp").write_bytes(flat(value, kind="BMP"))
    for path in directory.rglob("*"):
      os.utime(path, (9, 9))
    text = f"{kind}:{directory}/p.{kind}"
    opened = open_pool(text, SHAPE, tmp_path / "c", log=no_log)
    pixels.append(int(opened.images[0].max()))
  assert pixels == [3, 4]


def test_a_file_that_was_overwritten_makes_another_pool(tmp_path):
  """Overwrite a file by another of the same size and time."""
  for value in (3, 4):
    path = tmp_path / "p.npz"
    np.savez(path, images=np.full((1, *SHAPE), value, np.uint8))
    os.utime(path, (9, 9))
    opened = open_pool(f"npz:{path}", SHAPE, tmp_path / "c", log=no_log)
    assert (opened.images[0] == value).all()


def test_a_missing_shard_stops_the_pool(tmp_path):
  images = np.zeros((4, *SHAPE), np.uint8)
  dataset = Dataset("four", images, np.zeros(4, np.int32))
  written = builder.write("four", {"train": dataset}, tmp_path, shard_bytes=96)
  next(written.glob("*00001-of-00002")).unlink()
  with pytest.raises(UsageError, match="cannot be read from"):
    open_pool(f"tfds:{written}/train", SHAPE, tmp_path / "c", log=no_log)


def test_a_prepared_dataset_makes_a_pool(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)
  dataset = Dataset("five", images, np.zeros(5, np.int32))
  written = builder.write("five", {"train": dataset}, tmp_path)
  opened = open_pool(f"tfds:{written}/train", SHAPE, tmp_path / "c")
  np.testing.assert_array_equal(opened.images[:], images)
  assert opened.names[3] == "train/00000003"


def test_file_names_may_be_any_bytes(tmp_path):
  directory = tmp_path / "odd"
  directory.mkdir()
  for name in (b"two\nlines.png", b"\xff.png", "\u00e9.png".encode()):
    Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_bytes(flat(3))
  opened = open_pool(f"folder:{directory}", SHAPE, tmp_path / "c")
  assert len(opened) == 3
  assert set(names(opened)) == {"two\\nlines.png", "\\udcff.png", "\u00e9.png"}


_DECODE = """
import os, sys
from pathlib import Path
from dfkt_jax.data import pool
pool.CHUNK_BYTES = 2 * 4 * 4 * 3
save_npy = pool.save_npy
def save_and_die(path, array):
  save_npy(path, array)
  os.kill(os.getpid(), 9)
pool.save_npy = save_and_die
pool.open_pool(sys.argv[1], (4, 4, 3), Path(sys.argv[2]))
"""


def test_a_killed_decoding_continues(folder, tmp_path, monkeypatch):
  text, cache = f"folder:{folder}", tmp_path / "cache"
  killed = subprocess.run(
    [sys.executable, "-c", _DECODE, text, str(cache)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    cwd=Path(__file__).parents[2],
  )
  assert killed.returncode == -9
  (chunk,) = cache.rglob("*.npy")
  before = chunk.stat().st_mtime_ns
  monkeypatch.setattr(pools, "CHUNK_BYTES", 2 * 4 * 4 * 3)
  opened = open_pool(text, SHAPE, cache, log=no_log)
  assert chunk.stat().st_mtime_ns == before
  whole = open_pool(text, SHAPE, tmp_path / "other", log=no_log)
  np.testing.assert_array_equal(opened.images[:], whole.images[:])
  assert names(opened) == names(whole)
