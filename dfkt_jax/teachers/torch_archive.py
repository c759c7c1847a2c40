"""PyTorch's two file formats: zip archives and, before 1.6, rows of pickles.

Bytes are read in place, so memory of a size that a file declares is allocated
only after the file is known to have that many bytes.
"""

from collections.abc import Callable
import io
import struct
from typing import Any
import zipfile
import zlib

from dfkt_jax.teachers.torch_pickle import BadFile, Storage, load, quote

ReadStorage = Callable[[Storage], memoryview]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def open_zip(data: bytes) -> tuple[Any, ReadStorage]:
  """Load the object in a zip file, which torch.save writes since 1.6.

  Returns:
    The result of `torch_pickle.load`, and a function from the storage of one of
    its tensors to the bytes of the storage's key.

  Raises:
    BadFile: a member is missing, damaged, or its size is not the declared one.
  """
  archive = zipfile.ZipFile(io.BytesIO(data))
  members = {info.filename: info for info in archive.infolist()}
  if len(members) != len(archive.infolist()):
    raise BadFile("has two zip members of the same name")
  folder = _find_folder(members)
  order = f"{folder}/byteorder"
  if order in members and _read_member(data, members[order]) != b"little":
    raise BadFile("is not in little-endian byte order")

  storages: dict[str, Storage] = {}
  file = io.BytesIO(_read_member(data, members[f"{folder}/data.pkl"]))
  root = load(file, storages)
  for storage in storages.values():
    info = members.get(f"{folder}/data/{storage.key}")
    size = storage.size * storage.dtype.itemsize
    if info is None or info.file_size != size:
      found = "none" if info is None else f"{info.file_size}"
      raise BadFile(
        f"has {found} of the {size} bytes of storage {quote(storage.key)}"
      )

  checked: dict[str, memoryview] = {}

  def read_storage(storage):
    name = f"{folder}/data/{storage.key}"
    if name not in checked:
      checked[name] = _read_member(data, members[name])
    return checked[name]

  return root, read_storage


def open_legacy(data: bytes) -> tuple[Any, ReadStorage]:
  """Load the object in a file that torch.save wrote before 1.6; see `open_zip`.

  The file has five pickles (magic number, version, the machine's integer sizes,
  the object, the keys of its storages), then the storages, each after its size
  as an int64.
  """
  file = io.BytesIO(data)
  if load(file) != _LEGACY_MAGIC or load(file) != _LEGACY_VERSION:
    raise BadFile("is a pickle that torch.save did not write")
  load(file)  # The sizes of C's integers on the machine that saved the file.
  storages: dict[str, Storage] = {}
  root = load(file, storages)
  keys = load(file)
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise BadFile("has no list of storages")
  if sorted(keys) != sorted(storages):
    raise BadFile(
      f"stores {len(keys)} storages, but its tensors use {len(storages)} others"
    )
  blocks, start = {}, file.tell()
  for key in keys:
    storage = storages[key]
    (size,) = struct.unpack_from("<q", data, start)
    start += 8
    if size != storage.size:
      raise BadFile(
        f"has a storage {quote(key)} of {size} elements in one place and"
        f" of {storage.size} in another"
      )
    end = start + size * storage.dtype.itemsize
    if end > len(data):
      raise BadFile(
        f"has {len(data) - start} of the {end - start} bytes of storage"
        f" {quote(key)}"
      )
    blocks[key] = memoryview(data)[start:end]
    start = end
  if start != len(data):
    raise BadFile(f"goes on for {len(data) - start} bytes after its end")
  return root, lambda storage: blocks[storage.key]


def _find_folder(members):
  pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
  folder = pickles[0].partition("/")[0] if pickles else ""
  code = (f"{folder}/constants.pkl", f"{folder}/code/")
  if any(name.startswith(code) for name in members):
    raise BadFile(
      "is a TorchScript archive, which holds code and weights",
      "a file of weights",
      "load it with torch.jit.load and save the model's state_dict()",
    )
  if len(pickles) != 1:
    raise BadFile(
      f"is a zip archive with {len(pickles)} PyTorch pickles",
      "a .safetensors file or one that torch.save wrote",
      "give another file",
    )
  return folder


def _read_member(data, info) -> memoryview:
  """Return a member's bytes in place: no declared size is ever allocated."""
  if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
    raise BadFile(
      f"has the zip member {quote(info.filename)} compressed or encrypted",
      "members that are only stored, as torch.save writes them",
      "unpack it and zip it without compression",
    )
  lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
  start = info.header_offset + 30 + sum(lengths)
  block = memoryview(data)[start : start + info.file_size]
  if len(block) != info.file_size or zlib.crc32(block) != info.CRC:
    raise BadFile(f"has a damaged zip member {quote(info.filename)}")
  return block
