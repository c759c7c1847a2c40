"""Files that are cut short, damaged or inconsistent."""

import io
import random
import struct
import zipfile

import numpy as np
import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.teachers.torch_file import write_pth, write_safetensors
from tests import assets
from tests.teachers import torch_bytes as tb

ARRAYS = {
  "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
  "bn.num_batches_tracked": np.array(5, np.int64),
}
BLOCK = np.arange(4, dtype=np.float32)


def valid_file(tmp_path, form: str) -> bytes:
  """Return a small file in one of the three formats."""
  if form == "legacy":
    return tb.legacy_state_dict(ARRAYS)
  path = tmp_path / "valid"
  (write_pth if form == "zip" else write_safetensors)(path, ARRAYS)
  return path.read_bytes()


def read_or_refuse(tmp_path, data: bytes):
  """Return the tensors, or None after a UsageError that names the file."""
  try:
    return tb.read(tmp_path, data)
  except UsageError as error:
    text = str(error)
    assert text.startswith(str(tmp_path / "file.pth")) and "\n" not in text
    assert ": expected " in text and "; " in text
    return None


# --- Legacy files -------------------------------------------------------------


@pytest.mark.parametrize(
  ("storages", "message"),
  [
    ({}, "stores 0 storages, but its tensors use 1"),
    ({"1": BLOCK}, "stores 1 storages, but"),
    ({"0": BLOCK, "1": BLOCK}, "stores 2 storages, but"),
    ({"0": BLOCK[:3]}, "of 3 elements in one place and of 4 in another"),
  ],
)
def test_legacy_storages_must_match_the_tensors(tmp_path, storages, message):
  body = tb.mapping(w=tb.tensor(tb.storage(4, legacy=True)))
  with pytest.raises(UsageError, match=message):
    tb.read(tmp_path, tb.legacy_file(body, storages))


def test_a_legacy_file_that_is_too_long_or_too_short_is_refused(tmp_path):
  data = valid_file(tmp_path, "legacy")
  with pytest.raises(UsageError, match="goes on for 3 bytes after its end"):
    tb.read(tmp_path, data + b"abc")
  with pytest.raises(UsageError, match="has 7 of the 8 bytes of storage"):
    tb.read(tmp_path, data[:-1])


def test_bools_must_be_zero_or_one(tmp_path):
  storage = tb.storage(4, kind="BoolStorage")
  data = tb.zip_file(
    tb.mapping(w=tb.tensor(storage)), {"data/0": b"\x01\x02\x00\x00"}
  )
  with pytest.raises(UsageError, match="bytes other than 0 and 1 in the bool"):
    tb.read(tmp_path, data)


# --- Zip archives ------------------------------------------------------------

BODY = tb.mapping(w=tb.tensor(tb.storage(4)))
DATA = BLOCK.tobytes()


@pytest.mark.parametrize(
  ("members", "message"),
  [
    ({}, "has none of the 16 bytes of storage '0'"),
    ({"data/0": DATA[:-1]}, "has 15 of the 16 bytes of storage"),
    ({"data/0": DATA + b"x"}, "has 17 of the 16 bytes of storage"),
    ({"data/0": DATA, "byteorder": b"big"}, "not in little-endian byte order"),
    ({"data/0": DATA, "../x/data.pkl": b""}, None),
    ({"data/0": DATA, "version": b"3\n", "byteorder": b"little"}, None),
  ],
)
def test_zip_members_must_match_the_storages(tmp_path, members, message):
  data = tb.zip_file(BODY, members)
  if message is None:
    np.testing.assert_array_equal(tb.read(tmp_path, data)["w"], BLOCK[:2])
    return
  with pytest.raises(UsageError, match=message):
    tb.read(tmp_path, data)


def test_two_zip_members_of_the_same_name_are_refused(tmp_path):
  buffer = io.BytesIO(tb.zip_file(BODY, {"data/0": DATA}))
  with (
    zipfile.ZipFile(buffer, "a") as archive,
    pytest.warns(UserWarning, match="Duplicate"),
  ):
    archive.writestr("archive/data/0", bytes(16))
  with pytest.raises(UsageError, match="two zip members of the same name"):
    tb.read(tmp_path, buffer.getvalue())


def test_compressed_members_are_refused(tmp_path):
  bomb = {"data/0": bytes(2**24)}
  data = tb.zip_file(BODY, bomb, compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(UsageError, match="compressed or encrypted"):
    tb.read(tmp_path, data)


def test_a_member_that_declares_more_bytes_than_the_file_is_refused(tmp_path):
  body = tb.mapping(w=tb.tensor(tb.storage(2**28)))
  data = bytearray(tb.zip_file(body, {"data/0": DATA}))
  entry = data.rindex(b"PK\x01\x02")
  data[entry + 20 : entry + 28] = struct.pack("<II", 2**30, 2**30)
  with pytest.raises(UsageError, match="damaged zip member 'archive/data/0'"):
    tb.read(tmp_path, bytes(data))


# --- Damage ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_at_any_byte_is_refused(tmp_path, form):
  data = valid_file(tmp_path, form)
  assert read_or_refuse(tmp_path, data) is not None
  for end in range(len(data)):
    assert read_or_refuse(tmp_path, data[:end]) is None, end


def test_real_files_that_were_cut_are_refused(tmp_path):
  rng = random.Random(0)
  for path in (
    assets.shared_data("resnet20-12fca82f.th"),
    assets.package_file("ccexam", "weights/usps.pth"),
  ):
    data = path.read_bytes()
    for end in [*range(0, 300, 7), *rng.sample(range(len(data)), 40)]:
      assert read_or_refuse(tmp_path, data[:end]) is None, end


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_random_damage_is_refused_or_read(tmp_path, form):
  whole, rng = valid_file(tmp_path, form), random.Random(1)
  outcomes = []
  for _ in range(400):
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
      data[rng.randrange(len(data))] = rng.randrange(256)
    outcomes.append(read_or_refuse(tmp_path, bytes(data)))
  refused = sum(outcome is None for outcome in outcomes)
  assert 0 < refused < len(outcomes)
  if form == "zip":  # Its checksums let only undamaged tensors pass.
    for found in outcomes:
      for name, array in (found or {}).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_random_damage_inside_the_pickle_is_refused_or_read(tmp_path):
  """A legacy file has no checksum, so that the damage is reached."""
  body = tb.legacy_state_dict(ARRAYS)
  start = body.index(b"\x80\x02}")
  pickles = body.index(b"state_dict") - 8, body.index(b"best_prec1") + 40
  assert start < pickles[0]
  rng = random.Random(2)
  for _ in range(600):
    data = bytearray(body)
    for _ in range(rng.choice((1, 2, 3))):
      data[rng.randrange(*pickles)] = rng.randrange(256)
    read_or_refuse(tmp_path, bytes(data))
