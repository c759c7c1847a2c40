"""Valid files: reading and writing in agreement with PyTorch."""

import io
import json
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dfkt_jax.errors import UsageError
from dfkt_jax.teachers.torch_file import (
  read_state_dict,
  write_pth,
  write_safetensors,
)
from dfkt_jax.teachers.torch_pickle import ELEMENT_TYPES
from tests import assets
from tests.teachers import torch_bytes as tb

LEGACY = {"resnet20-12fca82f.th": 97, "resnet56-4bfd9763.th": 277}
CCEXAM = {"mnist": 8, "usps": 18, "svhn": 46}
WRITERS = (write_pth, write_safetensors)
W = tb.tensor(tb.storage(4), shape=(2, 2), strides=(2, 1))
SCALAR = tb.tensor(tb.storage(4), shape=(), strides=())
VALUES = np.arange(4, dtype=np.float32)
SAME_TWICE = b"}(%s%sq\x01%sh\x01u" % (
  tb.plain("a"),
  tb.mapping(w=W),
  tb.plain("b"),
)


def every_type() -> dict[str, np.ndarray]:
  """Return an array of each element type, an empty one and two scalars."""
  draw = np.random.default_rng(0).integers
  arrays = {
    kind.torch: draw(0, 2, (2, 3, 5)).astype(kind.dtype)
    for kind in ELEMENT_TYPES
  }
  arrays["nan"] = np.array([np.nan, -0.0, np.inf], np.float32)
  arrays["empty"] = np.zeros((3, 0, 2), np.float32)
  arrays["no dimensions"] = np.array(7, np.int64)
  arrays["größe.0"] = np.array(1.5, ml_dtypes.bfloat16)
  return arrays


def assert_same(found, expected, ordered=True):
  assert (list(found) if ordered else sorted(found)) == (
    list(expected) if ordered else sorted(expected)
  )
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    assert found[name].shape == array.shape, name
    assert found[name].tobytes() == array.tobytes(), name
    assert found[name].flags.writeable and found[name].flags.c_contiguous


def from_torch(tensors):
  """Convert tensors to numpy arrays; numpy does not have bfloat16."""
  torch = assets.torch()
  arrays = {}
  for name, tensor in tensors.items():
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
      bits = tensor.view(torch.int16).numpy()
      arrays[name] = bits.view(ml_dtypes.bfloat16)
    else:
      arrays[name] = tensor.numpy()
  return arrays


def read_body(tmp_path, body: bytes, **options):
  data = tb.zip_file(body, {"data/0": VALUES.tobytes()})
  return tb.read(tmp_path, data, **options)


# --- Real files --------------------------------------------------------------


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_file_is_read(name):
  tensors = read_state_dict(assets.shared_data(name))
  assert len(tensors) == LEGACY[name]
  assert next(iter(tensors)) == "conv1.weight"
  assert tensors["conv1.weight"].shape == (16, 3, 3, 3)
  assert tensors["linear.weight"].shape == (10, 64)
  assert all(a.dtype == np.float32 for a in tensors.values())
  assert all(np.isfinite(a).all() for a in tensors.values())


@pytest.mark.parametrize("name", CCEXAM)
def test_a_zip_file_saved_on_cuda_is_read(name):
  path = assets.package_file("ccexam", f"weights/{name}.pth")
  tensors = read_state_dict(path)
  assert len(tensors) == CCEXAM[name]
  assert all(np.isfinite(a).all() for a in tensors.values())


@pytest.mark.parametrize("name", [*LEGACY, *CCEXAM])
def test_real_files_are_read_as_by_torch(name):
  torch = assets.torch()
  if name in LEGACY:
    path = assets.shared_data(name)
  else:
    path = assets.package_file("ccexam", f"weights/{name}.pth")
  expected = torch.load(path, weights_only=True, map_location="cpu")
  expected = {
    key.removeprefix("module."): value
    for key, value in expected.get("state_dict", expected).items()
  }
  assert_same(read_state_dict(path), from_torch(expected))


# --- Parity with torch -------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_files_that_torch_saves_are_read(tmp_path, zipped, protocol):
  torch = assets.torch()
  generator = torch.Generator().manual_seed(0)
  base = torch.randn(4, 6, generator=generator)
  tensors = {
    kind.torch: torch.randn(3, 2, generator=generator).to(
      getattr(torch, kind.torch)
    )
    for kind in ELEMENT_TYPES
  }
  tensors |= {
    "base": base,
    "view": base[1:3, 2:],
    "transposed": base.T,
    "every other": base[::2, ::3],
    "tied": base,
    "expanded": base[:, :1].expand(4, 5),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(base * 2),
    "channels last": torch.randn(2, 3, 4, 5).to(
      memory_format=torch.channels_last
    ),
  }
  path = tmp_path / "file.pth"
  torch.save(
    tensors,
    path,
    pickle_protocol=protocol,
    _use_new_zipfile_serialization=zipped,
  )
  assert_same(read_state_dict(path), from_torch(tensors))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_more_than_weights_is_read(tmp_path, zipped):
  torch = assets.torch()
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  optimizer = torch.optim.Adam(model.parameters())
  model(torch.ones(1, 3, 8, 8)).sum().backward()
  optimizer.step()
  scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
  checkpoint = {
    "state_dict": torch.nn.DataParallel(model).state_dict(),
    "optimizer": optimizer.state_dict(),
    "scheduler": scheduler.state_dict(),
    "best_prec1": torch.tensor(91.5),
    "best_acc": np.float64(91.5),
    "confusion": np.eye(3),
    "shape": torch.Size([3, 8, 8]),
    "device": torch.device("cuda:0"),
    "dtype": torch.float32,
    "raw": b"bytes",
    "args": {"lr": 0.1, "big": 2**70, "names": ["a", None], "flag": (True,)},
  }
  path = tmp_path / "file.pth"
  torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
  assert_same(read_state_dict(path), from_torch(model.state_dict()))


def test_torch_reads_the_written_file(tmp_path):
  torch = assets.torch()
  path = tmp_path / "file.pth"
  write_pth(path, every_type())
  for mmap in (False, True):
    found = torch.load(path, weights_only=True, mmap=mmap)
    arrays = {name: a.copy() for name, a in from_torch(found).items()}
    assert_same(arrays, every_type())


# --- Writing -----------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_written_files_are_read_back(tmp_path, write):
  path = tmp_path / "folder" / "file"
  write(path, every_type())
  found = read_state_dict(path)
  assert_same(found, every_type(), ordered=write is write_pth)
  assert [file.name for file in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("write", WRITERS)
def test_equal_tensors_give_equal_bytes(tmp_path, write):
  write(tmp_path / "a", every_type())
  write(tmp_path / "b", every_type())
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_strided_and_big_endian_arrays_are_written(tmp_path, write):
  array = np.arange(12, dtype=">f4").reshape(3, 4).T[::2]
  write(tmp_path / "file", {"w": array})
  found = read_state_dict(tmp_path / "file")["w"]
  np.testing.assert_array_equal(found, array)
  assert found.dtype == np.dtype("<f4")


def test_the_safetensors_library_reads_the_written_file(tmp_path):
  arrays = {k: a for k, a in every_type().items() if a.dtype.kind != "V"}
  write_safetensors(tmp_path / "file", arrays)
  found = safetensors.numpy.load_file(tmp_path / "file")
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    assert found[name].tobytes() == array.tobytes()


def test_files_of_the_safetensors_library_are_read(tmp_path):
  arrays = {k: a for k, a in every_type().items() if a.dtype.kind != "V"}
  data = safetensors.numpy.save(arrays, {"format": "pt"})
  assert_same(tb.read(tmp_path, data), arrays, ordered=False)


def test_zip_storages_are_aligned(tmp_path):
  write_pth(tmp_path / "file", every_type())
  data = (tmp_path / "file").read_bytes()
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    assert archive.testzip() is None
    for info in archive.infolist():
      extra = int.from_bytes(data[info.header_offset + 28 :][:2], "little")
      start = info.header_offset + 30 + len(info.filename) + extra
      assert start % 64 == 0


@pytest.mark.parametrize("write", WRITERS)
def test_unwritable_types_and_paths_are_refused(tmp_path, write):
  with pytest.raises(UsageError, match="'w' of type complex64: expected"):
    write(tmp_path / "file", {"w": np.zeros(2, np.complex64)})
  (tmp_path / "taken").write_text("a file")
  with pytest.raises(UsageError, match="taken/file cannot be written"):
    write(tmp_path / "taken" / "file", {"w": VALUES})
  assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# --- Which tensors -----------------------------------------------------------


@pytest.mark.parametrize(
  "body",
  [
    tb.mapping(w=W),
    tb.mapping(**{"module.w": W}),
    tb.mapping(state_dict=tb.mapping(w=W)),
    tb.mapping(model=tb.mapping(**{"module.w": W}), epoch=tb.plain(3)),
    tb.mapping(checkpoint=tb.mapping(net=tb.mapping(w=W), loss=SCALAR)),
    tb.mapping(teacher=tb.mapping(w=W), acc=SCALAR, loss=SCALAR, x=SCALAR),
    tb.mapping(teacher=tb.mapping(w=W), optimizer=b"}K\x00" + W + b"s"),
    # One dict with two names is one state dict.
    SAME_TWICE,
    # Python 2 passes pairs to an OrderedDict, and pickles text as bytes.
    tb.call("collections.OrderedDict", b"](](U\x01w" + W + b"ee"),
  ],
)
def test_wrappers_and_prefix_are_removed(tmp_path, body):
  assert_same(read_body(tmp_path, body), {"w": VALUES.reshape(2, 2)})


def test_a_prefix_of_only_some_names_is_kept(tmp_path):
  body = tb.mapping(**{"module.w": W, "n_averaged": SCALAR})
  assert list(read_body(tmp_path, body)) == ["module.w", "n_averaged"]


def test_one_of_several_state_dicts_must_be_selected(tmp_path):
  body = tb.mapping(
    model=tb.mapping(w=W), ema=tb.mapping(module=tb.mapping(v=W))
  )
  with pytest.raises(
    UsageError, match=r"holds 2 state dicts \('model', 'ema.module'\)"
  ):
    read_body(tmp_path, body)
  assert list(read_body(tmp_path, body, entry="ema.module")) == ["v"]
  with pytest.raises(UsageError, match="no state dict 'net': expected one of"):
    read_body(tmp_path, body, entry="net")


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (tb.plain(5), "no state dict, only an object of type int"),
    (tb.plain({}), "no state dict"),
    (tb.mapping(epoch=tb.plain(3)), "no state dict, only a dict of 'epoch'"),
    (tb.mapping(a=tb.mapping(loss=SCALAR)), "no state dict"),
    (b"]" + W + b"a", "no state dict, only an object of type list"),
    (
      tb.mapping(w=W, v=W, epoch=tb.plain(3)),
      "'epoch', an object of type int, among",
    ),
    (b"}X\x03\x00\x00\x00\xed\xa0\x80" + W + b"s", "is damaged"),
    (tb.mapping(w=W, v=W, d=tb.name("torch.int8")), "'d', torch.int8, among"),
  ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, body, message):
  with pytest.raises(UsageError, match=message):
    read_body(tmp_path, body)


# --- Not a checkpoint --------------------------------------------------------


def npz() -> bytes:
  buffer = io.BytesIO()
  np.savez(buffer, w=VALUES)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "is empty"),
    (b"<!DOCTYPE html>\n<html>", "is a text file that starts with '<!DOCTYPE"),
    (b"version https://git-lfs.github.com/spec/v1\n", "download the file its"),
    (b"\x00\x01\x02", "starts with the bytes 00 01 02"),
    (npz(), "is a zip archive with 0 PyTorch pickles"),
    (
      tb.zip_file(tb.plain({}), {"constants.pkl": b"", "code/a.py": b""}),
      "is a TorchScript archive",
    ),
    (tb.whole(tb.plain({"a": 1})), "is a pickle that torch.save did not write"),
    (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "holds no tensors"),
    (b"\xff\x00\x00\x00\x00\x00\x00\x00{}", "damaged .* a whole .safetensors"),
  ],
)
def test_files_that_are_not_checkpoints_are_refused(tmp_path, data, message):
  with pytest.raises(UsageError, match=message) as caught:
    tb.read(tmp_path, data)
  # One sentence: the file, what was found, what was expected, what to do.
  text = str(caught.value)
  assert text.startswith(str(tmp_path / "file.pth")) and "\n" not in text
  assert ": expected " in text and "; " in text and text.endswith(".")


def test_paths_that_are_not_files_are_refused(tmp_path):
  with pytest.raises(UsageError, match="nowhere.pth does not exist: expected"):
    read_state_dict(tmp_path / "nowhere.pth")
  with pytest.raises(UsageError, match="is a folder: expected"):
    read_state_dict(tmp_path)
  with pytest.raises(UsageError, match="is not a regular file: expected"):
    read_state_dict("/dev/null")


def test_safetensors_of_other_types_are_refused(tmp_path):
  header = {"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}
  text = json.dumps(header).encode()
  data = len(text).to_bytes(8, "little") + text + bytes(8)
  with pytest.raises(UsageError, match="'w' of type C64: expected one of F64"):
    tb.read(tmp_path, data)


def test_an_entry_of_a_safetensors_file_is_refused(tmp_path):
  write_safetensors(tmp_path / "file", {"w": VALUES})
  with pytest.raises(UsageError, match="holds one state dict"):
    read_state_dict(tmp_path / "file", entry="model")


def test_torch_is_not_imported():
  code = "import dfkt_jax.teachers.torch_file, sys; print(*sys.modules)"
  modules = subprocess.check_output([sys.executable, "-c", code]).split()
  assert b"dfkt_jax.teachers.torch_file" in modules
  assert b"torch" not in modules
