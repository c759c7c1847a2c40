"""Members of a zip file, read by several threads at once.

zipfile lets one thread at a time seek and read; a handle a thread would cost
the table of contents once a thread. Reading at a place needs neither.
"""

from collections.abc import Callable
import hashlib
import os
from pathlib import Path
import struct
from typing import NamedTuple
import zipfile
import zlib

import numpy as np

from dfkt_jax import files
from dfkt_jax.data.listing import Listing
from dfkt_jax.errors import UsageError

_LOCAL_HEADER = 30  # bytes before the name


class _Place(NamedTuple):
  offset: int
  packed: int
  size: int
  crc: int
  kind: int
  encrypted: int


class ZipMembers:
  """The members of `path` that `wanted` says yes to, sorted by name.

  The table of contents is read once as a whole, by zipfile, which takes 660
  bytes a member (measured with a million): 6.6 GB for ten million, which are
  better in a folder. What is kept of it is 48 bytes a member and `names`.

  Raises:
    UsageError: it is no zip file that can be read.
  """

  def __init__(self, path: Path, wanted: Callable[[str], bool], largest: int):
    self._path, self._largest = path.resolve(), largest
    try:
      with zipfile.ZipFile(path) as archive:
        found = {
          info.filename: info
          for info in archive.infolist()
          if wanted(info.filename)
        }
      self._file = open(path, "rb")  # noqa: SIM115 (closed by `close`)
    except FileNotFoundError as error:
      raise UsageError(
        f"{path} does not exist: give zip:FILE with its path"
      ) from error
    except OSError as error:
      raise files.unreadable(path, error) from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
      raise UsageError(
        f"{path} is not a whole zip file ({error}): get it again"
      ) from error
    names = sorted(found)
    rows = (_place(found[name]) for name in names)
    self._places = np.fromiter(rows, np.dtype((np.int64, 6)), len(names))
    self.names = Listing(names)

  def __len__(self) -> int:
    return len(self.names)

  def fingerprint(self) -> str:
    """Changes with the path, and the names, sizes and checksums of members."""
    digest = hashlib.sha256(os.fsencode(self._path) + b"\n")
    digest.update(self._places.data)
    for index in range(len(self)):
      digest.update(os.fsencode(self.names[index]) + b"\n")
    return digest.hexdigest()

  def read(self, index: int) -> bytes:
    """Raises a BadZipFile for what is broken, encrypted or absurdly large."""
    place = _Place(*self._places[index].tolist())
    if place.encrypted or place.kind not in (
      zipfile.ZIP_STORED,
      zipfile.ZIP_DEFLATED,
    ):
      raise zipfile.BadZipFile("encrypted, or packed in an unusual way")
    if max(place.size, place.packed) > self._largest:
      raise zipfile.BadZipFile(f"over {self._largest >> 20} MiB")
    file = self._file.fileno()
    header = os.pread(file, _LOCAL_HEADER, place.offset)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
      raise zipfile.BadZipFile("its header is broken")
    behind = sum(struct.unpack_from("<HH", header, 26))  # name and extra
    start = place.offset + _LOCAL_HEADER + behind
    raw = os.pread(file, place.packed, start)
    if place.kind == zipfile.ZIP_DEFLATED:
      raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, place.size + 1)
    if len(raw) != place.size or zlib.crc32(raw) != place.crc:
      raise zipfile.BadZipFile("its checksum is wrong")
    return raw

  def close(self) -> None:
    self._file.close()
    self.names.close()


def _place(info):
  return _Place(
    info.header_offset,
    info.compress_size,
    info.file_size,
    info.CRC,
    info.compress_type,
    info.flag_bits & 1,
  )
