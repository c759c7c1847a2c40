"""Atomic writing of files, and reading with errors that help the user."""

from collections.abc import Callable, Mapping
import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
import uuid

from dfkt_jax.errors import DfktError, UsageError

FilePath = str | os.PathLike[str]

# Failures of the machine during a run, not of the path that the user gave.
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@runtime_checkable
class _Array(Protocol):
  """An array or scalar of numpy or JAX, which need not be imported here."""

  def tolist(self) -> Any: ...


def unwritable(path: FilePath, error: OSError) -> DfktError:
  """Return the error for a file or folder that cannot be written."""
  reason = error.strerror or str(error)
  if error.errno in _MACHINE_ERRORS:
    return DfktError(
      f"{os.fspath(path)} could not be written ({reason}): expected enough "
      "space on a working disk; make room or use another place, then run the "
      "same command again."
    )
  return UsageError(
    f"{os.fspath(path)} cannot be written ({reason}): expected a place where "
    "this user may write; choose another one."
  )


def unreadable(path: FilePath, error: OSError) -> UsageError:
  """Return the error for a file that cannot be opened."""
  reason = error.strerror or str(error)
  return UsageError(
    f"{os.fspath(path)} cannot be read ({reason}): expected a readable file; "
    "check the path."
  )


def write_atomic(path: FilePath, data: bytes | str) -> None:
  """Write a temporary file and rename it, so that no reader sees half a file.

  Missing folders are made; text is encoded as UTF-8.
  """
  # A link, such as one to a bigger disk, is kept, and its target is replaced.
  target = Path(os.path.realpath(path))
  # The pid alone is not unique among hosts that share a file system.
  unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
  temporary = target.with_name(f".{target.name}.{unique}.tmp")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "xb") as file:
      file.write(data.encode() if isinstance(data, str) else data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except OSError as error:
    raise unwritable(path, error) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def to_json(
  value: Any, non_finite: Callable[[float], Any] = lambda _: None
) -> Any:
  """Convert a value to the types of JSON: arrays to lists, paths to strings.

  JSON cannot represent nan and infinity, so they are replaced by the result of
  `non_finite`.
  """
  if isinstance(value, Mapping):
    return {key: to_json(item, non_finite) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [to_json(item, non_finite) for item in value]
  if isinstance(value, float):
    return value if abs(value) < float("inf") else non_finite(value)
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, _Array):
    return to_json(value.tolist(), non_finite)
  return value


def write_json(path: FilePath, value: Any) -> None:
  """Write a value as indented JSON, in its own order; nan becomes null."""
  text = json.dumps(to_json(value), indent=2, allow_nan=False)
  write_atomic(path, text + "\n")


def read_json(path: FilePath) -> Any:
  """Return the contents of a JSON file.

  Raises:
    UsageError: the file cannot be read or is not valid JSON.
  """
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
  """Return the SHA-256 of a file in hexadecimal."""
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise unreadable(path, error) from error
