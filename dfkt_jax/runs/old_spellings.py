"""Settings and flags of version 0.1: what they are called now."""

from collections.abc import Iterable, Sequence
import sys

# A setting's first part in version 0.1, and where the setting may be now.
_PLACES = (
  ("transfer.kd.", ("recipe.", "learner.")),
  ("study.kd.", ("recipe.", "learner.")),
  ("method.kd.", ("recipe.", "learner.")),
  ("transfer.", ("recipe.",)),
  ("study.", ("recipe.",)),
  ("course.", ("recipe.",)),
  ("method.", ("source.", "learner.", "recipe.")),
  ("", ("recipe.",)),
)
_FIELDS = {"pool_size": "memory_size"}


def find_field(name: str, known: Iterable[str]) -> str | None:
  """Return what a dotted field of version 0.1 is called among `known`.

  None: it is not such a field, or it is gone.
  """
  for prefix, places in _PLACES:
    if not name.startswith(prefix):
      continue
    rest = name.removeprefix(prefix)
    rest = _FIELDS.get(rest, rest)
    for place in places:
      for field in known:
        inside = field.startswith(place)
        if inside and f".{field}".endswith(f".{rest}"):
          return field
    return None
  return None


def replace_flags(args: Sequence[str], known: Iterable[str]) -> list[str]:
  """Return a command's words with its flags of version 0.1 renamed.

  Args:
    known: names of fields; a flag that is one of them is left as it is.
  """
  known = set(known)
  new = []
  for arg in args:
    flag, equals, value = arg.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    renamed = _FIELDS.get(name, "")
    if flag.startswith("--") and renamed in known and name not in known:
      now = f"--{renamed.replace('_', '-')}"
      report(flag, now)
      arg = now + equals + value
    new.append(arg)
  return new


def report(old: str, now: str) -> None:
  """Print that a name has changed, as a line of standard error."""
  sys.stderr.write(f"dfkt: {old} is now {now}\n")
