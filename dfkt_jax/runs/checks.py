"""Settings that do not describe a run are refused before it begins."""

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any

from dfkt_jax.contracts import Bounds
from dfkt_jax.errors import UsageError


def check(settings: Any) -> None:
  """Check every number of a dataclass, and of the dataclasses in its fields.

  All numbers are finite and within the `Bounds` that are written at their
  fields, in users' dataclasses as in ours. The items of a tuple are checked one
  by one; None is not checked. A tuple of ours has at least one item.

  Raises:
    UsageError: a number is not; the sentence names its flag.
  """
  if not dataclasses.is_dataclass(settings):
    return
  kind = type(settings)
  ours = kind.__module__.startswith("dfkt_jax.")
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      check(value)
      continue
    flag = f"--{field.name.replace('_', '-')}"
    if isinstance(value, tuple) and not value and ours:
      raise UsageError(f"{flag} has no value: give one or more")
    for item in value if isinstance(value, tuple) else (value,):
      if isinstance(item, int | float) and not isinstance(item, bool):
        _check(flag, item, bounds(kind)[field.name])


@functools.cache
def bounds(kind: type) -> dict[str, tuple[Bounds, ...]]:
  """Return the `Bounds` at every field of a dataclass."""
  hints = typing.get_type_hints(kind, include_extras=True)
  return {
    field.name: tuple(_find(hints[field.name]))
    for field in dataclasses.fields(kind)
  }


def _find(hint):
  """Yield the bounds in Annotated[...], also inside a union or a tuple."""
  if typing.get_origin(hint) is Annotated:
    for note in hint.__metadata__:
      if isinstance(note, Bounds):
        yield note
  for inner in typing.get_args(hint):
    yield from _find(inner)


def _check(flag, value, limits):
  if isinstance(value, float) and not math.isfinite(value):
    raise UsageError(f"{flag} is {value}: give a finite number")
  for limit in limits:
    if not limit.holds(value):
      share = "it is a share, " if (limit.low, limit.high) == (0, 1) else ""
      number = str(value).removesuffix(".0")
      raise UsageError(f"{flag} is {number}: {share}give {limit.describe()}")
