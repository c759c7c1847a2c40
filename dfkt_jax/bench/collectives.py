"""What a compiled program has its devices say to each other."""

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
# name = TYPE kind(operands), where TYPE may be a tuple. Asynchronous ones come
# as a start and a done; the start is counted.
_INSTRUCTION = re.compile(
  rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]  # type, shape of each result

  @property
  def bytes(self) -> int:
    """Of what a device has in the end: of a gather, all of it."""
    return sum(_bytes(*array) for array in self.arrays)


def find(program: str) -> Iterator[Collective]:
  """The collectives of a program, as `compiled.as_text()` shows it.

  One inside a loop is found once, however often the loop goes round.
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
