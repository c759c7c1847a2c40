"""Settings that describe no run are refused before anything is written."""

import dataclasses
import math
from typing import Any

from dfkt_jax.errors import UsageError

LARGEST_SEED = 2**63 - 1

# Of our own methods: what is no setting at 0, and what is a share of a whole.
ABOVE_ZERO = {
  "--angle-images",
  "--betas",
  "--candidates",
  "--classes-per-step",
  "--discriminator-widths",
  "--draws",
  "--draws-per-class",
  "--epsilon",
  "--generator-batch-size",
  "--generator-width",
  "--generator-widths",
  "--kept-classes",
  "--latent",
  "--memory-updates",
  "--mixup-alpha",
  "--neighbours",
  "--projection-width",
  "--prototypes-per-class",
  "--queue-size",
  "--sigma",
  "--smallest-crop",
  "--steps-per-batch",
  "--translator-width",
}
SHARES = {
  "--adapt-share",
  "--assumed-accuracy",
  "--blur",
  "--denoise",
  "--distance-threshold",
  "--early-momentum",
  "--grey",
  "--half-size-share",
  "--head-share",
  "--memory-momentum",
  "--mix",
  "--momentum-decay",
  "--pretrain-share",
  "--salt-and-pepper",
  "--shrink",
  "--smallest-crop",
  "--start-level",
  "--sure-first",
  "--sure-last",
  "--transfer-share",
  "--translate-share",
  "--tuning-share",
}


def check_numbers(settings: Any) -> None:
  """Every number of a dataclass, nested ones included, is one that can be.

  All are finite; those of our own dataclasses are not negative, some are above
  0 and some at most 1, temperatures are above 0, and a seed fits into 63 bits.
  A tuple has at least one, and they are all such.

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
      continue
    if isinstance(value, tuple) and not value and ours:
      raise UsageError(f"{flag} has no value: give one or more")
    for number in value if isinstance(value, tuple) else [value]:
      if isinstance(number, int | float) and not isinstance(number, bool):
        _check(flag, number, ours)


def _check(flag, value, ours):
  if not math.isfinite(value):
    raise UsageError(f"{flag} is {value}: give a finite number")
  if ours and value < 0:
    raise UsageError(f"{flag} is {value}: give 0 or more")
  above_zero = flag.endswith("temperature") or (ours and flag in ABOVE_ZERO)
  if above_zero and value == 0:
    raise UsageError(f"{flag} is 0: give a number above 0")
  if ours and flag in SHARES and value > 1:
    raise UsageError(f"{flag} is {value}: it is a share, give 0 to 1")
  if flag == "--seed" and value > LARGEST_SEED:
    raise UsageError(f"--seed is {value}: give at most {LARGEST_SEED}")
