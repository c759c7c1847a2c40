"""PyTorch checkpoint files to numpy arrays and back, without PyTorch.

Reading runs no code of the file and trusts no size that it declares; writing is
atomic. `torch_archive` reads PyTorch's two file formats, `torch_pickle` the
pickles in them.
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
  quote,
)

_ELEMENT_TYPES = {kind.dtype: kind for kind in ELEMENT_TYPES}
_ALIGNMENT = 64
_EXPECTED = "a .safetensors, .pth, .pt or .th file"


def read_state_dict(
  path: FilePath, entry: str | None = None
) -> dict[str, np.ndarray]:
  """Return the tensors of a `.safetensors` or PyTorch file, by name.

  PyTorch files may be zip or legacy files. Dicts around the state dict and a
  `module.` before all names are removed. Arrays are writeable, contiguous
  copies in PyTorch's layout, of float64, float32, float16, bfloat16, int64,
  int32, int16, int8, uint8 or bool.

  Args:
    path: the file; its format is recognized by its contents, not its name.
    entry: name of the state dict to read if a file holds several, such as
      "model" or "checkpoint.ema".

  Raises:
    UsageError: the file has another format, is damaged, wants to run code, or
      holds no state dict or several.
  """
  try:
    tensors = _parse(_read_bytes(path), entry)
  except BadFile as error:
    raise UsageError(f"{os.fspath(path)} {error}") from error
  except OSError as error:
    raise files.unreadable(path, error) from error
  # Hostile bytes can raise any error in the libraries that parse them.
  except Exception as error:
    reason = f"{type(error).__name__}: {error}"[:200]
    reason = "".join(c if c.isprintable() else " " for c in reason)
    message = BadFile(f"is damaged ({reason})")
    raise UsageError(f"{os.fspath(path)} {message}") from error
  if all(name.startswith("module.") for name in tensors):
    return {name.removeprefix("module."): a for name, a in tensors.items()}
  return tensors


def write_pth(path: FilePath, tensors: Mapping[str, Any]) -> None:
  """Write a file for `torch.load(path, weights_only=True)`, atomically.

  Equal tensors give equal bytes.

  Args:
    path: the file to write or replace.
    tensors: names to arrays of the types that `read_state_dict` lists.

  Raises:
    UsageError: an array has another type, or the path cannot be written.
  """
  arrays = _to_arrays(path, tensors)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    _add_member(archive, buffer, "data.pkl", _pickle_tensors(arrays))
    _add_member(archive, buffer, "byteorder", b"little")
    for index, array in enumerate(arrays.values()):
      _add_member(archive, buffer, f"data/{index}", _raw_bytes(array))
    _add_member(archive, buffer, "version", b"3\n")
  files.write_atomic(path, buffer.getvalue())


def write_safetensors(path: FilePath, tensors: Mapping[str, Any]) -> None:
  """Write a `.safetensors` file, atomically; see `write_pth`."""
  arrays = _to_arrays(path, tensors)
  # The widest elements first, so that tensors are aligned without padding.
  names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
  header, end = {}, 0
  for name in names:
    start, end = end, end + arrays[name].nbytes
    header[name] = {
      "dtype": _ELEMENT_TYPES[arrays[name].dtype].safetensors,
      "shape": arrays[name].shape,
      "data_offsets": (start, end),
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  data = b"".join(_raw_bytes(arrays[name]) for name in names)
  files.write_atomic(path, struct.pack("<Q", len(text)) + text + data)


# --- Reading -----------------------------------------------------------------


def _read_bytes(path) -> bytes:
  try:
    mode = os.stat(path).st_mode
  except (FileNotFoundError, NotADirectoryError):
    raise BadFile("does not exist", _EXPECTED, "check the path") from None
  if stat.S_ISDIR(mode):
    raise BadFile("is a folder", _EXPECTED, "give the file in it")
  if not stat.S_ISREG(mode):
    raise BadFile("is not a regular file", _EXPECTED, "copy it to a file first")
  with open(path, "rb") as file:
    data = file.read()
  if not data:
    raise BadFile("is empty", _EXPECTED)
  return data


def _parse(data, entry) -> dict[str, np.ndarray]:
  if _is_safetensors(data):
    return _parse_safetensors(data, entry)
  if data.startswith(b"PK"):
    root, read_storage = open_zip(data)
  elif data.startswith(b"\x80"):
    root, read_storage = open_legacy(data)
  else:
    raise _unknown_format(data)
  tensors = _choose_state_dict(root, entry)
  # With strides of 0, a single byte could become terabytes.
  total = sum(tensor.nbytes for tensor in tensors.values())
  if total > max(4 * len(data), 2**26):
    raise BadFile(f"has {len(data)} bytes for tensors of {total} bytes")
  return {
    name: _to_array(name, tensor, read_storage(tensor.storage))
    for name, tensor in tensors.items()
  }


def _unknown_format(data):
  head = data[:64]
  if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
    return BadFile(
      f"is a text file that starts with {quote(head.decode()[:40])}",
      _EXPECTED,
      "download the file itself, not a page or a pointer to it",
    )
  return BadFile(f"starts with the bytes {data[:8].hex(' ')}", _EXPECTED)


def _is_safetensors(data):
  if len(data) < 9 or data[8:9] != b"{":
    return False
  # A file that was cut short still has the start of its header; zip files and
  # pickles do not have one there.
  return data[:2] != b"PK" and int.from_bytes(data[:8], "little") < 2**32


def _parse_safetensors(data, entry):
  if entry is not None:
    raise BadFile(
      "is a .safetensors file, which holds one state dict",
      f"a file with an entry {quote(entry)}",
      "leave the entry out",
    )
  whole = "a whole .safetensors file"
  try:
    found = deserialize(data)
  except SafetensorError as error:
    raise BadFile(f"is damaged ({quote(str(error))})", whole) from error
  types = {kind.safetensors: kind.dtype for kind in ELEMENT_TYPES}
  tensors = {}
  for name, tensor in found:
    if tensor["dtype"] not in types:
      raise BadFile(
        f"has the tensor {quote(name)} of type {tensor['dtype']}",
        f"one of {', '.join(types)}",
        "convert it with the program that wrote it",
      )
    array = np.frombuffer(tensor["data"], types[tensor["dtype"]])
    tensors[name] = _check_bools(name, array.reshape(tensor["shape"]))
  if not tensors:
    raise BadFile("holds no tensors", whole)
  return tensors


def _choose_state_dict(root, entry) -> dict[str, Tensor]:
  found = {".".join(path): value for path, value in _candidates(root)}
  names = ", ".join(quote(name) for name in list(found)[:8])
  if not found:
    contents = quote(root)
    if type(root) is dict:
      keys = ", ".join(quote(key) for key in list(root)[:5])
      contents = f"a dict of {keys}"
    raise BadFile(
      f"holds no state dict, only {contents}",
      "a dict of names and tensors",
      "save model.state_dict() with the program that wrote it",
    )
  if entry is None and len(found) > 1:
    raise BadFile(
      f"holds {len(found)} state dicts ({names})",
      "one",
      "select one by its name (entry)",
    )
  if entry is not None and entry not in found:
    raise BadFile(
      f"has no state dict {quote(entry)}",
      f"one of {names}",
      "select one of them",
    )
  chosen = found[next(iter(found)) if entry is None else entry]
  for name, value in chosen.items():
    name.encode()  # A lone surrogate would raise much later, when written.
    if type(value) is not Tensor:
      raise BadFile(
        f"has {quote(name)}, {quote(value)}, among its tensors",
        "only tensors",
        "save the state dict without it",
      )
  return chosen


def _candidates(root):
  """Yield (path, dict) of the outermost dicts that look like a state dict."""
  queue: deque[tuple[tuple[str, ...], Any]] = deque([((), root)])
  seen = set()
  while queue:
    path, value = queue.popleft()
    if type(value) is not dict or id(value) in seen:
      continue
    seen.add(id(value))
    if _is_state_dict(value):
      yield path, value
    elif len(path) < 4:
      # An optimizer's state has numbers as keys. Long keys, joined again and
      # again, could fill the memory.
      queue.extend(
        ((*path, key), item)
        for key, item in value.items()
        if type(key) is str and len(key) < 200
      )


def _is_state_dict(value):
  # The outer dict of a checkpoint may hold a metric or two as scalar tensors,
  # and the state dict of a custom module may hold something else than tensors.
  tensors = [item for item in value.values() if type(item) is Tensor]
  return (
    2 * len(tensors) > len(value)
    and any(tensor.shape for tensor in tensors)
    and all(type(key) is str for key in value)
  )


def _to_array(name, tensor, data) -> np.ndarray:
  storage = tensor.storage
  if 0 in tensor.shape:
    return np.empty(tensor.shape, storage.dtype)
  item = storage.dtype.itemsize
  view = np.ndarray(
    tensor.shape,
    storage.dtype,
    data,
    (storage.start + tensor.offset) * item,
    [stride * item for stride in tensor.strides],
  )
  return _check_bools(name, view.copy())


def _check_bools(name, array):
  if array.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
    raise BadFile(
      f"has bytes other than 0 and 1 in the bool tensor {quote(name)}"
    )
  return array


# --- Writing -----------------------------------------------------------------


def _to_arrays(path, tensors) -> dict[str, np.ndarray]:
  arrays = {}
  for name, value in tensors.items():
    array = np.asarray(value, order="C")
    if array.dtype.byteorder == ">":
      array = array.astype(array.dtype.newbyteorder("<"))
    arrays[name] = array
    if array.dtype not in _ELEMENT_TYPES:
      types = ", ".join(kind.torch for kind in ELEMENT_TYPES)
      raise UsageError(
        f"{os.fspath(path)} cannot hold {quote(name)} of type"
        f" {array.dtype}: expected one of {types}; convert it first."
      )
  return arrays


def _raw_bytes(array) -> memoryview:
  return array.reshape(-1).view(np.uint8).data


def _add_member(archive, buffer, name, data):
  info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
  info.create_system = 0
  # PyTorch aligns storages so that they can be memory-mapped.
  start = buffer.tell() + 30 + len(info.filename) + 4
  padding = -start % _ALIGNMENT
  info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
  archive.writestr(info, data)


def _pickle_tensors(arrays) -> bytes:
  """Pickle an OrderedDict of tensors, opcode by opcode, without torch."""
  parts = [b"\x80\x02", _ORDERED_DICT, b"("]
  for index, (name, array) in enumerate(arrays.items()):
    kind = _ELEMENT_TYPES[array.dtype].storage
    strides = [1]
    for size in array.shape[:0:-1]:
      strides.insert(0, strides[0] * max(size, 1))
    parts += [
      *(_pickle(name), b"ctorch._utils\n_rebuild_tensor_v2\n("),
      *(b"(", _pickle("storage"), f"ctorch\n{kind}\n".encode()),
      *(_pickle(str(index)), _pickle("cpu"), _pickle(array.size), b"tQ"),
      *(_pickle(0), _pickle(array.shape)),
      *(_pickle(tuple(strides[: array.ndim])), _pickle(False)),
      *(_ORDERED_DICT, b"tR"),
    ]
  return b"".join([*parts, b"u."])


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _pickle(value) -> bytes:
  """Return the opcodes of a plain value, without header and end."""
  return pickletools.optimize(pickle.dumps(value, 2))[2:-1]
