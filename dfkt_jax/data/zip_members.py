"""Members of a zip file, read by several threads at once.

zipfile lets only one thread at a time seek and read, and a handle per thread
would hold the table of contents once per thread. `os.pread` needs neither.
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


class _Entry(NamedTuple):
  """A member's entry in the table of contents; sizes are in bytes."""

  offset: int
  compressed_size: int
  size: int
  crc: int
  compression: int
  encrypted: int


class ZipMembers:
  """The members of a zip file, sorted by name.

  zipfile reads the whole table of contents once, which takes 660 bytes per
  member (measured with a million): 6.6 GB for ten million members, which should
  be in a folder instead. Only 48 bytes per member and `names` are kept.

  Args:
    path: the zip file.
    include: returns whether a member of this name is included.
    max_bytes: size of the largest member that `read` unpacks.

  Raises:
    UsageError: the file cannot be read or is not a zip file.
  """

  def __init__(
    self, path: Path, include: Callable[[str], bool], max_bytes: int
  ):
    self._path, self._max_bytes = path.resolve(), max_bytes
    try:
      with zipfile.ZipFile(path) as archive:
        found = {
          info.filename: info
          for info in archive.infolist()
          if include(info.filename)
        }
      self._file = open(path, "rb")  # noqa: SIM115 (closed by `close`)
    except FileNotFoundError as error:
      raise UsageError(
        f"{path} does not exist: expected zip:FILE with the path of a zip file;"
        " check the path"
      ) from error
    except OSError as error:
      raise files.unreadable(path, error) from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
      raise UsageError(
        f"{path} cannot be unpacked ({error}): expected a whole zip file;"
        " download or copy it again"
      ) from error
    names = sorted(found)
    rows = (_to_entry(found[name]) for name in names)
    self._entries = np.fromiter(rows, np.dtype((np.int64, 6)), len(names))
    self.names = Listing(names)

  def __len__(self) -> int:
    return len(self.names)

  def fingerprint(self) -> str:
    """Return a digest of the path and the names, sizes and CRCs of members."""
    digest = hashlib.sha256(os.fsencode(self._path) + b"\n")
    digest.update(self._entries.data)
    for index in range(len(self)):
      digest.update(os.fsencode(self.names[index]) + b"\n")
    return digest.hexdigest()

  def read(self, index: int) -> bytes:
    """Return the bytes of a member.

    Raises:
      BadZipFile: the member is broken, encrypted or too large.
    """
    entry = _Entry(*self._entries[index].tolist())
    if entry.encrypted or entry.compression not in (
      zipfile.ZIP_STORED,
      zipfile.ZIP_DEFLATED,
    ):
      raise zipfile.BadZipFile("encrypted, or of an unusual compression")
    if max(entry.size, entry.compressed_size) > self._max_bytes:
      raise zipfile.BadZipFile(f"over {self._max_bytes >> 20} MiB")
    file = self._file.fileno()
    header = os.pread(file, _LOCAL_HEADER, entry.offset)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
      raise zipfile.BadZipFile("its header is broken")
    variable = sum(struct.unpack_from("<HH", header, 26))  # name and extra
    start = entry.offset + _LOCAL_HEADER + variable
    raw = os.pread(file, entry.compressed_size, start)
    if entry.compression == zipfile.ZIP_DEFLATED:
      raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, entry.size + 1)
    if len(raw) != entry.size or zlib.crc32(raw) != entry.crc:
      raise zipfile.BadZipFile("its checksum is wrong")
    return raw

  def close(self) -> None:
    """Close the file and remove the list of names."""
    self._file.close()
    self.names.close()


def _to_entry(info):
  return _Entry(
    info.header_offset,
    info.compress_size,
    info.file_size,
    info.CRC,
    info.compress_type,
    info.flag_bits & 1,
  )
