"""Lists of names in a file instead of in memory."""

from array import array
from collections.abc import Iterable
import os
import tempfile


class Listing:
  """Names by index, at eight bytes of memory per name.

  Several threads may read it. The file is anonymous, and `close` removes it.
  """

  def __init__(self, names: Iterable[str]):
    self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
    self._ends = array("q", [0])
    for name in names:
      raw = os.fsencode(name)
      self._file.write(raw)
      self._ends.append(self._ends[-1] + len(raw))
    self._file.flush()

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> str:
    start, end = self._ends[index], self._ends[index + 1]
    return os.fsdecode(os.pread(self._file.fileno(), end - start, start))

  def close(self) -> None:
    self._file.close()
