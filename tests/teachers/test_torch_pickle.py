"""Pickles that want to run code, contradict themselves or fill the memory."""

import copyreg
import os
from pathlib import Path
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.teachers.torch_file import read_state_dict
from tests import assets
from tests.teachers import torch_bytes as tb

BLOCK = np.arange(4, dtype=np.float32)


def in_every_container(body: bytes):
  """Return files with `body` as the object, or as a legacy magic number."""
  return (
    tb.zip_file(body, {"data/0": BLOCK.tobytes()}),
    tb.legacy_file(body, {"0": BLOCK}),
    tb.whole(body),
  )


# --- Code --------------------------------------------------------------------


class Runs:
  """An object that runs `function(argument)` when Python unpickles it."""

  def __init__(self, function, argument):
    self.call = (function, (argument,))

  def __reduce__(self):
    return self.call


def shell(mark: Path):
  return f"touch '{mark}'"


def python(mark: Path):
  return f"open({str(mark)!r}, 'w').close()"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
  ("function", "argument", "name"),
  [
    (os.system, shell, f"{os.system.__module__}.system"),
    (eval, python, "(__builtin__|builtins).eval"),
    (exec, python, "(__builtin__|builtins).exec"),
    (os.remove, str, f"{os.remove.__module__}.remove"),
  ],
)
def test_code_is_refused_by_name(tmp_path, function, argument, name, protocol):
  mark = tmp_path / "mark"
  evil = Runs(function, argument(mark))
  if function is os.remove:
    mark.touch()
  before = mark.exists()
  body = pickle.dumps(evil, protocol)[2:-1]
  for data in in_every_container(body):
    with pytest.raises(UsageError, match=rf"wants the Python name '{name}' \("):
      tb.read(tmp_path, data)
  assert mark.exists() == before


@pytest.mark.parametrize(
  "path",
  [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen"),
    *("builtins.eval", "__builtin__.eval", "builtins.getattr"),
    *("builtins.object", "builtins.dict", "functools.partial"),
    *("numpy.load", "numpy.loads", "numpy.core.multiarray.fromfile"),
    *("numpy.testing._private.utils.runstring", "numpy.memmap"),
    *("collections.namedtuple", "collections.defaultdict"),
    *("collections.OrderedDict.fromkeys", "collections.OrderedDict.__class__"),
    *("torch.load", "torch.hub.load", "torch.storage._load_from_bytes"),
    *("torch._utils._rebuild_sparse_tensor", "torch._utils.warnings.sys"),
    *("torch.nn.modules.linear.Linear", "argparse.Namespace"),
    *(
      "torch.ComplexFloatStorage",
      "torch.QInt8Storage",
      "copyreg._reconstructor",
    ),
    *("pickle.loads", "_pickle.loads", "dfkt_jax.files.write_atomic"),
  ],
)
def test_names_that_are_not_needed_are_refused(tmp_path, path):
  module, _, attribute = path.rpartition(".")
  stack_global = tb.plain(module) + tb.plain(attribute) + b"\x93"
  for lookup in (tb.name(path), stack_global):
    body = lookup + tb.plain(("ls",)) + b"R"
    for data in in_every_container(body):
      with pytest.raises(UsageError) as caught:
        tb.read(tmp_path, data)
      assert f"wants the Python name '{path}' (nothing was run)" in str(
        caught.value
      )


def test_a_whole_pickled_model_is_refused(tmp_path):
  torch = assets.torch()
  for zipped in (True, False):
    torch.save(
      torch.nn.Sequential(torch.nn.Linear(2, 2)),
      tmp_path / "file.pth",
      _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UsageError, match=r"'torch\.nn\..*Sequential' "):
      read_state_dict(tmp_path / "file.pth")


ORDERED = tb.name("collections.OrderedDict")
WEIGHT = tb.tensor(tb.storage(4))


@pytest.mark.parametrize(
  ("body", "message"),
  [
    # Other opcodes that construct objects.
    (b"(cos\nsystem\n" + tb.plain("ls") + b"o", "os.system"),
    (
      b"(" + ORDERED + b"o",
      "uses OBJ, an opcode that torch.save does not write",
    ),
    (b"(icollections\nOrderedDict\n", "uses INST"),
    (ORDERED + b")\x81", "uses NEWOBJ"),
    (ORDERED + b")}\x92", "uses NEWOBJ_EX"),
    (b"\x82\x07", "uses EXT1"),
    (b"\x83\x07\x00", "uses EXT2"),
    (b"Pevil\n", "uses PERSID"),
    (b"\x97", "uses NEXT_BUFFER"),
    # Calls of objects that are not functions.
    (tb.plain("os.system") + b")R", "calls 'os.system'"),
    (WEIGHT + b")R", "calls an object of type Tensor"),
    (tb.name("torch.FloatStorage") + b")R", "calls torch.FloatStorage"),
    (ORDERED + b"]R", "calls collections.OrderedDict"),
    (tb.call("collections.OrderedDict", *[tb.plain(1)] * 2), "TypeError"),
    (
      tb.call("collections.OrderedDict", tb.plain(1)),
      "makes a dict from an object of type int",
    ),
    # Attributes of our own objects.
    (
      WEIGHT + tb.plain({"storage": 1}) + b"b",
      "sets attributes of an object of type Tensor",
    ),
    (tb.storage(4) + b"}b", "sets attributes of an object of type Storage"),
    (tb.plain("x") + b"}b", "sets attributes of 'x'"),
    (tb.plain((1,)) + tb.plain(1) + b"a", "appends to an object of type tuple"),
    (tb.name("torch.int8") + b"K\x01K\x02s", "sets items of torch.int8"),
    (b"}" + WEIGHT + b"K\x01s", "has an object of type Tensor as a key"),
    (b"}]K\x01s", "has an object of type list as a key"),
    # References to objects outside the pickle.
    (tb.plain("storage") + b"Q", "not a storage"),
    (tb.plain(("module", 1, 2, 3, 4)) + b"Q", "not a storage"),
    (
      tb.plain(("storage", "FloatStorage", "0", "cpu", 4)) + b"Q",
      "not a storage",
    ),
    (tb.storage(4, kind="float32"), "not a storage"),
    (tb.storage(4) + tb.storage(4, kind="LongStorage"), "two different descr"),
    (tb.storage(4) + tb.storage(3), "two different descriptions of storage"),
    (tb.storage(-1), "out of range"),
    (tb.storage(True), "out of range"),
    (tb.storage(2.0), "out of range"),
    # Tensors made from other objects.
    (tb.tensor(tb.plain(1)), "makes a tensor from an object of type int"),
    (
      tb.call("torch._utils._rebuild_parameter", *[b"}"] * 3),
      "from an object of type dict",
    ),
    (tb.call("torch._utils._rebuild_tensor_v2", b"N"), "TypeError"),
    # Stack and memo.
    (b"h\x05", "KeyError"),
    (b"0", "uses POP"),
    (b"R", "IndexError"),
    (b"t", "IndexError"),
    (b"", "IndexError"),
  ],
)
def test_opcodes_that_are_not_needed_are_refused(tmp_path, body, message):
  for data in in_every_container(body)[:2]:
    with pytest.raises(UsageError, match=message):
      tb.read(tmp_path, data)


def test_registered_extensions_are_not_reached(tmp_path):
  copyreg.add_extension("os", "system", 0x70)
  try:
    body = b"\x82\x70" + tb.plain((shell(tmp_path / "mark"),)) + b"R"
    for data in in_every_container(body):
      with pytest.raises(UsageError, match="uses EXT1"):
        tb.read(tmp_path, data)
  finally:
    copyreg.remove_extension("os", "system", 0x70)
  assert not (tmp_path / "mark").exists()


# --- Sizes -------------------------------------------------------------------


@pytest.mark.parametrize(
  ("offset", "shape", "strides", "message"),
  [
    (0, (5,), (1,), "reaches element 4 of a storage of 4"),
    (3, (2,), (1,), "reaches element 4"),
    (4, (), (), "reaches element 4"),
    (0, (2, 2), (3, 1), "reaches element 4"),
    (0, (2,), (2**40,), "reaches element"),
    (0, (2**40,), (1,), "reaches element"),
    (-1, (2,), (1,), "out of range"),
    (0, (-2,), (1,), "out of range"),
    (3, (2,), (-1,), "out of range"),
    (0, (2**63,), (0,), "out of range"),
    (0, (2**64 + 2,), (1,), "out of range"),
    (0, (2.0,), (1,), "out of range"),
    (0, (True,), (1,), "out of range"),
    (0, [2], [1], "shape is not a tuple"),
    (0, (2,), (), "1 dimensions and 0 strides"),
    (0, (1,) * 33, (1,) * 33, "33 dimensions"),
    # Terabytes in a small file whose storage size is right.
    (0, (2**40,), (0,), "bytes for tensors of 4398046511104 bytes"),
    (0, (2**20, 2**20), (0, 0), "bytes for tensors of"),
    (0, (0, 2**47, 2**47), (1, 1, 1), "is damaged"),
  ],
)
def test_tensors_stay_inside_their_storage(
  tmp_path, offset, shape, strides, message
):
  for legacy in (False, True):
    storage = tb.storage(4, legacy=legacy)
    body = tb.mapping(w=tb.tensor(storage, offset, shape, strides))
    if legacy:
      data = tb.legacy_file(body, {"0": BLOCK})
    else:
      data = tb.zip_file(body, {"data/0": BLOCK.tobytes()})
    with pytest.raises(UsageError, match=message):
      tb.read(tmp_path, data)


@pytest.mark.parametrize(
  ("offset", "shape", "strides"),
  [
    (3, (1,), (2**40,)),
    (0, (2, 2), (1, 1)),
    (1, (3,), (1,)),
    (0, (3, 2), (0, 1)),
    (4, (0,), (1,)),
    (2, (), ()),
  ],
)
def test_unusual_strides_inside_the_storage_are_read(
  tmp_path, offset, shape, strides
):
  body = tb.mapping(
    v=tb.tensor(tb.storage(4)),
    w=tb.tensor(tb.storage(4), offset, shape, strides),
  )
  found = tb.read(tmp_path, tb.zip_file(body, {"data/0": BLOCK.tobytes()}))["w"]
  expected = np.zeros(shape, np.float32)
  for index in np.ndindex(*shape):
    element = offset + sum(i * s for i, s in zip(index, strides))
    expected[index] = BLOCK[element]
  np.testing.assert_array_equal(found, expected)


def test_a_view_must_stay_inside_its_legacy_storage(tmp_path):
  def body(start, length):
    view = tb.plain(("view", start, length))
    storage = tb.storage(4, legacy=True)
    return tb.mapping(w=tb.tensor(storage.replace(b"NtQ", view + b"tQ")))

  found = tb.read(tmp_path, tb.legacy_file(body(1, 3), {"0": BLOCK}))["w"]
  np.testing.assert_array_equal(found, [1, 2])
  for start, length, message in ((2, 3, "past the end"), (3, 1, "reaches")):
    data = tb.legacy_file(body(start, length), {"0": BLOCK})
    with pytest.raises(UsageError, match=message):
      tb.read(tmp_path, data)


# --- Bombs -------------------------------------------------------------------


def doublings(count: int) -> bytes:
  """Return a tuple of 2**count leaves with a few bytes per level."""
  return b"K\x00" + b"q\x00h\x00\x86" * count


def same_pairs(count: int) -> bytes:
  """Return a list of 2000 pairs and `count` dicts made from it."""
  pairs = b"".join(tb.plain([i, 0]) for i in range(2000))
  return b"]q\x00(" + pairs + b"e" + ORDERED + b"q\x01" + PAIRS_TO_DICT * count


def long_names(count: int) -> bytes:
  """Return `count` state dicts that share a key of 100 kB."""
  name = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00"
  inner = b"}h\x00}" + tb.plain("w") + b"h\x01ss"
  outer = b"".join(tb.plain(str(i)) + inner for i in range(count))
  return name + WEIGHT + b"q\x01}(" + outer + b"u"


PAIRS_TO_DICT = b"h\x01h\x00\x85R"


@pytest.mark.parametrize(
  "body",
  [
    b"K\x00r\xff\xff\xff\xff",  # a memo index of four billion
    b"\x8e" + struct.pack("<Q", 2**62),  # four exabytes of bytes
    b"\x96" + struct.pack("<Q", 2**62),
    b"\x8d" + struct.pack("<Q", 2**40) + b"x",
    b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    b"\x95" + struct.pack("<Q", 2**62),
    doublings(2000),
    b"}" + doublings(2000) + b"K\x00s",
    b")" + b"\x85" * 30_000,
    b"}" + b"(" + b"\x85" * 30_000 + b"K\x00s",
    b"]" * 30_000,
    b"}" * 30_000 + b"K\x00s" * 1000,
    b"(" * 30_000,
    # Nested dicts, and a dict that contains itself.
    (b"}" + tb.plain("a")) * 10_000 + b"}" + b"s" * 10_000,
    b"}q\x00" + tb.plain("a") + b"h\x00s",
    same_pairs(20_000),
    long_names(2000),
  ],
)
def test_small_files_use_little_memory(tmp_path, body):
  data = tb.zip_file(body, {"data/0": BLOCK.tobytes()})
  tracemalloc.start()
  try:
    with pytest.raises(UsageError):
      tb.read(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 2**26
