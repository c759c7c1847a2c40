"""Files written whole or not at all, and read with errors a person can use."""

from collections.abc import Callable, Mapping
import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any
import uuid

from dfkt_jax.errors import DfktError, UsageError

FilePath = str | os.PathLike[str]

# The machine's fault in the middle of a run, not the caller's choice of place.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def unwritable(path: FilePath, error: OSError) -> DfktError:
  """The sentence for a place that does not take our bytes."""
  reason = error.strerror or str(error)
  if error.errno in _MACHINE:
    return DfktError(
      f"{os.fspath(path)} could not be written ({reason}): make room or use "
      "another place, then run the same command again."
    )
  return UsageError(
    f"{os.fspath(path)} cannot be written ({reason}): expected a place this "
    "user may write to; choose another one."
  )


def unreadable(path: FilePath, error: OSError) -> UsageError:
  """The sentence for a file that cannot be opened."""
  reason = error.strerror or str(error)
  return UsageError(
    f"{os.fspath(path)} cannot be read ({reason}): expected a readable file; "
    "check the path."
  )


def write_atomic(path: FilePath, data: bytes | str) -> None:
  """Writes beside `path` and renames: nobody ever reads half a file.

  Missing folders are made; text is UTF-8.
  """
  # A link, say to a bigger disk, stays a link: its target is replaced.
  target = Path(os.path.realpath(path))
  # The pid alone repeats across hosts that share one file system.
  unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
  beside = target.with_name(f".{target.name}.{unique}.tmp")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(beside, "xb") as file:
      file.write(data.encode() if isinstance(data, str) else data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, target)
  except OSError as error:
    raise unwritable(path, error) from error
  finally:
    with contextlib.suppress(OSError):
      beside.unlink()


def plain(
  value: Any, non_finite: Callable[[float], Any] = lambda _: None
) -> Any:
  """`value` in JSON's own types: arrays as lists, paths as strings.

  JSON has no nan and no infinity; `non_finite` says what stands for them.
  """
  if isinstance(value, Mapping):
    return {key: plain(item, non_finite) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item, non_finite) for item in value]
  if isinstance(value, float):
    return value if abs(value) < float("inf") else non_finite(value)
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "tolist"):
    return plain(value.tolist(), non_finite)
  return value


def write_json(path: FilePath, value: Any) -> None:
  """Writes `value` as indented JSON in its own order; nan becomes null."""
  write_atomic(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: FilePath) -> Any:
  """The contents of a JSON file, or a UsageError that names it."""
  try:
    return json.loads(Path(path).read_bytes())
  except OSError as error:
    raise unreadable(path, error) from error
  except (ValueError, RecursionError) as error:
    raise UsageError(
      f"{os.fspath(path)} is not valid JSON ({error}): expected a whole JSON "
      "file; restore it or remove it."
    ) from error


def sha256(path: FilePath) -> str:
  """The file's SHA-256 in hexadecimal."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise unreadable(path, error) from error
