"""PyTorch files assembled byte by byte, both valid and invalid ones."""

import io
from pathlib import Path
import pickle
import pickletools
import struct
import zipfile

import numpy as np

from dfkt_jax.teachers.torch_file import read_state_dict

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def read(folder: Path, data: bytes, **options) -> dict[str, np.ndarray]:
  """Return the state dict of a file with these bytes."""
  path = folder / "file.pth"
  path.write_bytes(data)
  return read_state_dict(path, **options)


def plain(value) -> bytes:
  """Return the opcodes of a value of Python's own types, without a header."""
  return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def name(path: str) -> bytes:
  """Return the opcode that looks up a global."""
  module, _, attribute = path.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def call(path: str, *arguments: bytes) -> bytes:
  """Return the opcodes that call a global."""
  return name(path) + b"(" + b"".join(arguments) + b"tR"


def mapping(**items: bytes) -> bytes:
  pairs = b"".join(plain(key) + value for key, value in items.items())
  return b"}(" + pairs + b"u"


def storage(size, key="0", kind="FloatStorage", legacy=False) -> bytes:
  """Return the opcodes of a reference to a storage."""
  view = (plain(None),) if legacy else ()
  parts = (
    *(plain("storage"), name(f"torch.{kind}"), plain(key), plain("cuda:0")),
    *(plain(size), *view),
  )
  return b"(" + b"".join(parts) + b"tQ"


def tensor(storage: bytes, offset=0, shape=(2,), strides=(1,)) -> bytes:
  """Return the opcodes that rebuild a tensor."""
  arguments = (plain(value) for value in (offset, shape, strides, False))
  hooks = call("collections.OrderedDict")
  return call("torch._utils._rebuild_tensor_v2", storage, *arguments, hooks)


def whole(body: bytes) -> bytes:
  """Return a pickle of protocol 2."""
  return b"\x80\x02" + body + b"."


def zip_file(body: bytes, members: dict[str, bytes], **options) -> bytes:
  """Return a file in today's format; `body` is the pickle without its frame."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", **options) as archive:
    for member, data in {"data.pkl": whole(body), **members}.items():
      archive.writestr(f"archive/{member}", data)
  return buffer.getvalue()


def legacy_file(body: bytes, storages: dict[str, np.ndarray]) -> bytes:
  """Return a file of PyTorch before 1.6."""
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
  parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, system)]
  parts += [whole(body), pickle.dumps(list(storages), 2)]
  for data in storages.values():
    parts += [struct.pack("<q", data.size), data.tobytes()]
  return b"".join(parts)


def legacy_state_dict(arrays: dict[str, np.ndarray]) -> bytes:
  """Return a legacy file of contiguous f32 and i64 arrays, in a wrapper."""
  items = {}
  for key, array in arrays.items():
    kind = STORAGES[array.dtype.name]
    reference = storage(array.size, key, kind, legacy=True)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    items[key] = tensor(reference, 0, array.shape, strides)
  body = mapping(state_dict=mapping(**items), best_prec1=plain(91.5))
  return legacy_file(body, arrays)
