"""A run's folder: what it was asked to do, and what came of it.

config.json    the settings; they decide whether a rerun resumes
metrics.jsonl  one line of losses a few rounds
checkpoints/   the state, to resume from
shards/        of a run made in parts: the log and state of each
images/        grids of what was synthesised
result.json    written last; a run that has one is finished
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import inspect
from pathlib import Path
import time
from typing import Any

import jax

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.methods import USER_MODULE

LOCK_SECONDS = 10  # to wait for who writes the settings down


def settings(value: Any) -> Any:
  """A dataclass as nested JSON values, each dataclass with its "name"."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {
      field.name: settings(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
    return {"name": type(value).__name__, **_source(type(value)), **fields}
  if isinstance(value, tuple | list):
    return [settings(item) for item in value]
  return str(value) if isinstance(value, Path) else value


def _source(kind):
  """The digest of a user's own file: the same name may mean another method."""
  if kind.__module__.startswith(USER_MODULE):
    return {"source_sha256": files.sha256(inspect.getfile(kind))}
  return {}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


@contextlib.contextmanager
def claim(workdir: Path, config: Mapping[str, Any]) -> Iterator[None]:
  """Takes the folder for a run of these settings, new or to be resumed.

  A folder that was new is gone again where the run refuses its input.

  Raises:
    UsageError: it belongs to other settings, to another running process or to
      somebody else, or cannot be written.
  """
  if jax.process_index() != 0:
    yield
    return
  path = workdir / "config.json"
  check(workdir, config)
  folder_is_new, new = not workdir.exists(), not path.exists()
  _check_ours(workdir)
  if new or not has_progress(workdir):
    files.write_json(path, config)
  with lock(workdir / ".lock") as free:
    if not free:
      raise _in_use(workdir)
    try:
      yield
    except UsageError:
      if new and not has_progress(workdir):
        for made in (path, workdir / ".lock"):
          made.unlink(missing_ok=True)
        if folder_is_new:
          with contextlib.suppress(OSError):  # it holds something else
            workdir.rmdir()
      raise


@contextlib.contextmanager
def share(
  workdir: Path, config: Mapping[str, Any], process: int
) -> Iterator[None]:
  """Takes part in a run of these settings whose processes need not meet.

  They may come and go at any time, each with a number of its own. Meanwhile no
  run can `claim` the folder.

  Raises:
    UsageError: it belongs to other settings or to somebody else, a process of
      this number is at work in it, or it cannot be written.
  """
  path = workdir / "config.json"
  check(workdir, config)
  _check_ours(workdir)
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(_open(workdir / ".lock"))
    # With nobody else here, settings that saved nothing give way.
    if _flock(file, fcntl.LOCK_EX) and not has_progress(workdir):
      files.write_json(path, config)
    deadline = time.monotonic() + LOCK_SECONDS
    while not _flock(file, fcntl.LOCK_SH):
      # Another one may have it to itself while it writes the settings.
      if time.monotonic() > deadline:
        raise _in_use(workdir)
      time.sleep(0.05)
    _check_same(path, files.read_json(path), files.plain(config))
    if not stack.enter_context(lock(workdir / f".lock-{process:05d}")):
      raise UsageError(
        f"--workdir {workdir} is in use by another running process of number"
        f" {process}: wait for it, or give each its own DFKT_PROCESS"
      )
    yield


def finished(workdir: Path) -> dict | None:
  """The result of a finished run, or None."""
  path = workdir / "result.json"
  return files.read_json(path) if path.exists() else None


def check(workdir: Path, config: Mapping[str, Any]) -> None:
  """Refuses a folder in which a run of other settings got somewhere.

  `claim` does so too; this is for commands with long work before they claim.

  Raises:
    UsageError: it belongs to other settings.
  """
  path = workdir / "config.json"
  if path.exists() and has_progress(workdir):
    _check_same(path, files.read_json(path), files.plain(config))


def has_progress(workdir: Path) -> bool:
  """Whether other settings would lose anything that a run has saved."""
  return (
    (workdir / "result.json").exists()
    or any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
    or any(workdir.glob("shards/*/checkpoints/*.npz"))
    or any(workdir.glob("dataset/*.array_record-*"))
  )


def _check_ours(workdir: Path) -> None:
  """Refuses a folder that is no workdir, unless it is just becoming one."""
  if (workdir / "config.json").exists() or not workdir.exists():
    return
  ours = (".lock", ".config.json.")
  if not workdir.is_dir() or any(
    not path.name.startswith(ours) for path in workdir.iterdir()
  ):
    raise UsageError(
      f"--workdir {workdir} exists and holds no config.json, so it is not a"
      " workdir of dfkt: give a new or an empty folder"
    )


def _check_same(path, old, new):
  old, new = flatten(old), flatten(new)
  # These are what they hold, wherever they stand by now.
  moved = {name for name in ("teacher", "selection") if f"{name}_sha256" in new}
  differences = [
    f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
    for name in dict.fromkeys([*old, *new])
    if old.get(name) != new.get(name) and name not in moved
  ]
  if differences:
    raise UsageError(
      f"{path} is of another configuration ({'; '.join(differences)}): use"
      " another --workdir, or the settings of this one to resume it"
    )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
  """Holds the lock of this file; False where another process does.

  File systems without locks let everybody have it.
  """
  with _open(path) as file:
    yield _flock(file, fcntl.LOCK_EX)


def _open(path):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w")
  except OSError as error:
    raise files.unwritable(path, error) from error


def _flock(file, kind):
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    pass  # a file system without locks
  return True


def _in_use(workdir):
  return UsageError(
    f"--workdir {workdir} is in use by another running process: wait for it, or"
    " use another folder"
  )
