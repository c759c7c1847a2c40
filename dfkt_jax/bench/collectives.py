"""Communication between devices, read from a compiled program."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
  "collective-broadcast",
)
# name = TYPE kind(operands), where TYPE may be a tuple. An asynchronous one has
# a start and a done; the start is counted.
_INSTRUCTION = re.compile(
  rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
  """One collective operation of a program."""

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]  # type, shape of each result

  @property
  def bytes(self) -> int:
    """The size of the result on one device, which of a gather is all of it."""
    return sum(_bytes(*array) for array in self.arrays)


def find(program: str) -> Iterator[Collective]:
  """Yield the collectives of a program, given as `compiled.as_text()`.

  A collective inside a loop is found once, whatever the number of iterations.
  """
  for line in program.splitlines():
    match = _INSTRUCTION.match(line)
    if match:
      result, kind, start = match.groups()
      arrays = tuple(
        (name, tuple(int(n) for n in shape.split(",") if n))
        for name, shape in _ARRAY.findall(result)
      )
      if start and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :]  # operands come first
      yield Collective(kind, arrays)


def _bytes(name, shape):
  bits = _BITS.search(name)  # pred has none
  return math.ceil(math.prod(shape) * int(bits[0] if bits else 8) / 8)
