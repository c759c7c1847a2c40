"""Settings that describe no run are refused before anything is written."""

import dataclasses
import math
from typing import Any

from dfkt_jax.errors import UsageError

LARGEST_SEED = 2**63 - 1


def check_numbers(settings: Any) -> None:
  """Every number of a dataclass, nested ones included, is one that can be.

  All are finite; those of our own dataclasses are not negative, temperatures
  are above 0, and a seed fits into 63 bits.

  Raises:
    UsageError: one is not; the sentence names its flag.
  """
  ours = type(settings).__module__.startswith("dfkt_jax.")
  for field in dataclasses.fields(settings):
    value, flag = (
      getattr(settings, field.name),
      f"--{field.name.replace('_', '-')}",
    )
    if dataclasses.is_dataclass(value):
      check_numbers(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
      _check(flag, value, ours)


def _check(flag, value, ours):
  if not math.isfinite(value):
    raise UsageError(f"{flag} is {value}: give a finite number")
  if ours and value < 0:
    raise UsageError(f"{flag} is {value}: give 0 or more")
  if flag.endswith("temperature") and value == 0:
    raise UsageError(f"{flag} is 0: give a number above 0")
  if flag == "--seed" and value > LARGEST_SEED:
    raise UsageError(f"--seed is {value}: give at most {LARGEST_SEED}")
