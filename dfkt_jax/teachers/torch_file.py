"""PyTorch checkpoint files to numpy arrays and back, without PyTorch.

Reading runs no code of the file and believes none of its sizes; writing puts
the file in place whole. `torch_archive` knows PyTorch's two containers,
`torch_pickle` the pickles in them.
"""

from collections import deque
from collections.abc import Mapping
import io
import json
import os
import pickle
import pickletools
import stat
import struct
from typing import Any
import zipfile

import numpy as np
from safetensors import SafetensorError, deserialize

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.files import FilePath
from dfkt_jax.teachers.torch_archive import open_legacy, open_zip
from dfkt_jax.teachers.torch_pickle import (
  ELEMENT_TYPES,
  BadFile,
  Tensor,
  shown,
)

_KINDS = {kind.dtype: kind for kind in ELEMENT_TYPES}
_ALIGNMENT = 64


def read_state_dict(
  path: FilePath, entry: str | None = None
) -> dict[str, np.ndarray]:
  """The tensors of a `.safetensors` or PyTorch file (zip or legacy), by name.

  Dicts around the state dict and a `module.` in front of all names are
  removed. Arrays are writeable, contiguous copies in PyTorch's layout, of
  float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8 or bool.

  Args:
    path: the file; what it is is read from its contents, not its name.
    entry: which state dict to take where a file holds several, such as "model"
      or "checkpoint.ema".

  Raises:
    UsageError: the file is no such file, is damaged, wants to run code, or
      holds no or several state dicts.
  """
  try:
    tensors = _read(_contents(path), entry)
  except BadFile as error:
    raise UsageError(f"{os.fspath(path)} {error}") from error
  except OSError as error:
    raise files.unreadable(path, error) from error
  # Hostile bytes fail in any of the libraries that parse them, in any way.
  except Exception as error:
    reason = f"{type(error).__name__}: {error}"[:200]
    reason = "".join(c if c.isprintable() else " " for c in reason)
    message = BadFile(f"is damaged ({reason})")
    raise UsageError(f"{os.fspath(path)} {message}") from error
  if all(name.startswith("module.") for name in tensors):
    return {name.removeprefix("module."): a for name, a in tensors.items()}
  return tensors


def write_pth(path: FilePath, tensors: Mapping[str, Any]) -> None:
  """Writes what `torch.load(path, weights_only=True)` reads, atomically.

  Equal tensors give equal bytes.

  Args:
    path: the file to write or replace.
    tensors: names to arrays of one of the types of `read_state_dict`.

  Raises:
    UsageError: an array has another type, or the path cannot be written.
  """
  arrays = _arrays(path, tensors)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    _add(archive, buffer, "data.pkl", _pickled(arrays))
    _add(archive, buffer, "byteorder", b"little")
    for index, array in enumerate(arrays.values()):
      _add(archive, buffer, f"data/{index}", _raw(array))
    _add(archive, buffer, "version", b"3\n")
  files.write_atomic(path, buffer.getvalue())


def write_safetensors(path: FilePath, tensors: Mapping[str, Any]) -> None:
  """Writes a `.safetensors` file, atomically; see `write_pth`."""
  arrays = _arrays(path, tensors)
  # The widest elements first: every tensor is aligned without padding.
  names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
  header, end = {}, 0
  for name in names:
    start, end = end, end + arrays[name].nbytes
    header[name] = {
      "dtype": _KINDS[arrays[name].dtype].safetensors,
      "shape": arrays[name].shape,
      "data_offsets": (start, end),
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  data = b"".join(_raw(arrays[name]) for name in names)
  files.write_atomic(path, struct.pack("<Q", len(text)) + text + data)


# --- Reading -----------------------------------------------------------------


def _contents(path) -> bytes:
  wanted = "a .safetensors, .pth, .pt or .th file"
  try:
    mode = os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError):
    raise BadFile("does not exist", wanted, "check the path") from None
  if stat.S_ISDIR(mode):
    raise BadFile("is a folder", wanted, "name the file in it")
  if not stat.S_ISREG(mode):
    raise BadFile("is no regular file", wanted, "copy it to a file first")
  with open(path, "rb") as file:
    data = file.read()
  if not data:
    raise BadFile("is empty", wanted)
  return data


def _read(data, entry) -> dict[str, np.ndarray]:
  if _is_safetensors(data):
    return _read_safetensors(data, entry)
  if data.startswith(b"PK"):
    root, block = open_zip(data)
  elif data.startswith(b"\x80"):
    root, block = open_legacy(data)
  else:
    raise _unknown(data)
  tensors = _state_dict(root, entry)
  # Strides of 0 can blow a byte up to terabytes.
  total = sum(tensor.nbytes for tensor in tensors.values())
  if total > max(4 * len(data), 2**26):
    raise BadFile(f"has {len(data)} bytes for tensors of {total} bytes")
  return {
    name: _array(name, tensor, block(tensor.storage))
    for name, tensor in tensors.items()
  }


def _unknown(data):
  wanted = "a .safetensors, .pth, .pt or .th file"
  head = data[:64]
  if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
    return BadFile(
      f"is a text file that starts with {shown(head.decode()[:40])}",
      wanted,
      "download the file itself, not a page or a pointer to it",
    )
  return BadFile(f"starts with the bytes {data[:8].hex(' ')}", wanted)


def _is_safetensors(data):
  if len(data) < 9 or data[8:9] != b"{":
    return False
  # A cut file still has its header's start; zip and pickle have none there.
  return data[:2] != b"PK" and int.from_bytes(data[:8], "little") < 2**32


def _read_safetensors(data, entry):
  if entry is not None:
    raise BadFile(
      "is a .safetensors file, which holds one state dict",
      f"a file with an entry {shown(entry)}",
      "leave the entry out",
    )
  whole = "a whole .safetensors file"
  try:
    found = deserialize(data)
  except SafetensorError as error:
    raise BadFile(f"is damaged ({shown(str(error))})", whole) from error
  types = {kind.safetensors: kind.dtype for kind in ELEMENT_TYPES}
  tensors = {}
  for name, tensor in found:
    if tensor["dtype"] not in types:
      raise BadFile(
        f"has the tensor {shown(name)} of type {tensor['dtype']}",
        f"one of {', '.join(types)}",
        "convert it where it comes from",
      )
    array = np.frombuffer(tensor["data"], types[tensor["dtype"]])
    tensors[name] = _checked(name, array.reshape(tensor["shape"]))
  if not tensors:
    raise BadFile("holds no tensors", whole)
  return tensors


def _state_dict(root, entry) -> dict[str, Tensor]:
  found = {".".join(path): value for path, value in _candidates(root)}
  names = ", ".join(shown(name) for name in list(found)[:8])
  if not found:
    inside = type(root).__name__
    if type(root) is dict:
      inside = f"dict of {', '.join(shown(key) for key in list(root)[:5])}"
    raise BadFile(
      f"holds no state dict (but a {inside})",
      "a dict of names and tensors",
      "save model.state_dict() where it comes from",
    )
  if entry is None and len(found) > 1:
    raise BadFile(
      f"holds {len(found)} state dicts ({names})",
      "one",
      "say which one by its name (entry)",
    )
  if entry is not None and entry not in found:
    raise BadFile(
      f"has no state dict {shown(entry)}", f"one of {names}", "name one of them"
    )
  chosen = found[next(iter(found)) if entry is None else entry]
  for name, value in chosen.items():
    name.encode()  # Half a surrogate would fail much later, when written.
    if type(value) is not Tensor:
      raise BadFile(
        f"has {shown(name)}, a {shown(value)}, among its tensors",
        "tensors alone",
        "save it without",
      )
  return chosen


def _candidates(root):
  """(path, dict) of the outermost dicts that look like a state dict."""
  waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), root)])
  seen = set()
  while waiting:
    path, value = waiting.popleft()
    if type(value) is not dict or id(value) in seen:
      continue
    seen.add(id(value))
    if _is_state_dict(value):
      yield path, value
    elif len(path) < 4:
      # The state of an optimizer is tensors under numbers. Long keys, joined
      # again and again, could fill the memory.
      waiting.extend(
        ((*path, key), item)
        for key, item in value.items()
        if type(key) is str and len(key) < 200
      )


def _is_state_dict(value):
  # A checkpoint's own dict may hold a metric or two as scalar tensors, and a
  # state dict of a custom module may hold something that is none.
  tensors = [item for item in value.values() if type(item) is Tensor]
  return (
    2 * len(tensors) > len(value)
    and any(tensor.shape for tensor in tensors)
    and all(type(key) is str for key in value)
  )


def _array(name, tensor, block) -> np.ndarray:
  storage = tensor.storage
  if 0 in tensor.shape:
    return np.empty(tensor.shape, storage.dtype)
  item = storage.dtype.itemsize
  view = np.ndarray(
    tensor.shape,
    storage.dtype,
    block,
    (storage.start + tensor.offset) * item,
    [stride * item for stride in tensor.strides],
  )
  return _checked(name, view.copy())


def _checked(name, array):
  if array.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
    raise BadFile(f"has bytes in {shown(name)} that are neither true nor false")
  return array


# --- Writing -----------------------------------------------------------------


def _arrays(path, tensors) -> dict[str, np.ndarray]:
  arrays = {}
  for name, value in tensors.items():
    array = np.asarray(value, order="C")
    if array.dtype.byteorder == ">":
      array = array.astype(array.dtype.newbyteorder("<"))
    arrays[name] = array
    if array.dtype not in _KINDS:
      types = ", ".join(kind.torch for kind in ELEMENT_TYPES)
      raise UsageError(
        f"{os.fspath(path)} cannot hold {shown(name)} of type {array.dtype}:"
        f" expected one of {types}; convert it first."
      )
  return arrays


def _raw(array) -> memoryview:
  return array.reshape(-1).view(np.uint8).data


def _add(archive, buffer, name, data):
  info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
  info.create_system = 0
  # PyTorch aligns its storages, so that they can be mapped into memory.
  start = buffer.tell() + 30 + len(info.filename) + 4
  padding = -start % _ALIGNMENT
  info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
  archive.writestr(info, data)


def _pickled(arrays) -> bytes:
  """The pickle of an OrderedDict of tensors, spelt out: torch is not here."""
  parts = [b"\x80\x02", _ORDERED_DICT, b"("]
  for index, (name, array) in enumerate(arrays.items()):
    kind = _KINDS[array.dtype].storage
    strides = [1]
    for size in array.shape[:0:-1]:
      strides.insert(0, strides[0] * max(size, 1))
    parts += [
      *(_plain(name), b"ctorch._utils\n_rebuild_tensor_v2\n("),
      *(b"(", _plain("storage"), f"ctorch\n{kind}\n".encode()),
      *(_plain(str(index)), _plain("cpu"), _plain(array.size), b"tQ"),
      *(_plain(0), _plain(array.shape), _plain(tuple(strides[: array.ndim]))),
      *(_plain(False), _ORDERED_DICT, b"tR"),
    ]
  return b"".join([*parts, b"u."])


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _plain(value) -> bytes:
  return pickletools.optimize(pickle.dumps(value, 2))[2:-1]
