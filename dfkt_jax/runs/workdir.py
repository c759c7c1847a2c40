"""A run's folder: its settings, its state, and its results.

config.json    the settings; they decide whether a rerun resumes
metrics.jsonl  losses and evaluations, one line of JSON each time
checkpoints/   the state, to resume from
assets.npz     arrays that methods made before the first step
selection.csv  the images that were selected from a pool
shards/        the log and state of each part, where a run is made in parts
dataset/       synthesized images
images/        pictures
student/       the student of a distillation
network/       the network of a training or an adaptation
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
from dfkt_jax.devices.processes import barrier
from dfkt_jax.errors import UsageError
from dfkt_jax.user_modules import USER_MODULE

VERSION = "0.2"  # of what config.json and checkpoints hold
LOCK_SECONDS = 10  # the longest wait for the process that writes the settings


def settings(value: Any) -> Any:
  """Return a dataclass as nested JSON values, each with its "name"."""
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
  """Digest a user's own file: the same name may mean another method."""
  if kind.__module__.startswith(USER_MODULE):
    return {"code_sha256": files.sha256(inspect.getfile(kind))}
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
  """Take the folder for a run of these settings, new or to be resumed.

  Nothing is written before this process holds the lock. A folder that was new
  is removed again if the run refuses its input.

  Raises:
    UsageError: the folder belongs to other settings, to another running process
      or to somebody else, or cannot be written.
  """
  if jax.process_index() != 0:
    barrier("the workdir is claimed")
    yield
    return
  path = workdir / "config.json"
  folder_is_new = not workdir.exists()
  _check_ours(workdir)
  with lock(workdir / ".lock") as free:
    if not free:
      raise _in_use(workdir)
    check(workdir, config)
    new = not path.exists()
    if new or not has_progress(workdir):
      _begin(workdir, config)
    barrier("the workdir is claimed")
    try:
      yield
    except UsageError:
      if new and not has_progress(workdir):
        _remove(workdir, folder_is_new)
      raise


def _begin(workdir: Path, config: Mapping[str, Any]) -> None:
  """Write the settings, and drop what methods prepared for other ones."""
  (workdir / "assets.npz").unlink(missing_ok=True)
  files.write_json(workdir / "config.json", config)


def _remove(workdir: Path, with_folder: bool) -> None:
  """Remove what `claim` wrote, unless the run has written more.

  A folder with more in it stays a workdir, whose settings may be replaced.
  """
  ours = (workdir / "config.json", workdir / ".lock")
  if set(workdir.iterdir()) - set(ours):
    return
  for path in ours:
    path.unlink(missing_ok=True)
  if with_folder:
    with contextlib.suppress(OSError):  # somebody wrote into it just now
      workdir.rmdir()


@contextlib.contextmanager
def share(
  workdir: Path, config: Mapping[str, Any], process: int
) -> Iterator[None]:
  """Take part in a run of these settings whose processes need not meet.

  Processes may come and go at any time, each with a number of its own. No run
  can `claim` the folder meanwhile.

  Raises:
    UsageError: the folder belongs to other settings or to somebody else, a
      process of this number is at work in it, or it cannot be written.
  """
  path = workdir / "config.json"
  check(workdir, config)
  _check_ours(workdir)
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(_open(workdir / ".lock"))
    # With nobody else here, settings that saved nothing are replaced.
    if _flock(file, fcntl.LOCK_EX) and not has_progress(workdir):
      _begin(workdir, config)
    deadline = time.monotonic() + LOCK_SECONDS
    while not _flock(file, fcntl.LOCK_SH):
      # Another process may hold it alone while it writes the settings.
      if time.monotonic() > deadline:
        raise _in_use(workdir)
      time.sleep(0.05)
    _check_same(path, files.read_json(path), files.to_json(config))
    if not stack.enter_context(lock(workdir / f".lock-{process:05d}")):
      raise UsageError(
        f"--workdir {workdir} is in use by another running process of number"
        f" {process}: wait for it, or give each its own DFKT_PROCESS"
      )
    yield


def finished(workdir: Path) -> dict | None:
  """Return the result of a finished run, or None."""
  path = workdir / "result.json"
  return files.read_json(path) if path.exists() else None


def check(workdir: Path, config: Mapping[str, Any]) -> None:
  """Refuse a folder in which a run of other settings has made progress.

  `claim` does so too; this is for commands with long work before they claim.

  Raises:
    UsageError: the folder belongs to other settings.
  """
  path = workdir / "config.json"
  if path.exists() and has_progress(workdir):
    _check_same(path, files.read_json(path), files.to_json(config))


def has_progress(workdir: Path) -> bool:
  """Return whether a run has saved anything that other settings would lose."""
  return (
    (workdir / "result.json").exists()
    or any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))
    or any(workdir.glob("shards/*/checkpoints/*.npz"))
    or any(workdir.glob("dataset/*.array_record-*"))
  )


def _check_ours(workdir: Path) -> None:
  """Refuse a folder that is not a workdir, unless it is becoming one."""
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
  version = old.get("version", "0.1")
  if version != new.get("version", version):
    raise UsageError(
      f"{path} was written by dfkt {version}, whose settings and checkpoints"
      f" this version ({VERSION}) does not read: use another --workdir, or"
      f" finish the run with dfkt {version}; its networks can be used as they"
      " are"
    )
  old, new = flatten(old), flatten(new)
  # These are identified by their contents, wherever they lie by now.
  moved = {
    name
    for name in ("teacher", "source", "selection")
    if f"{name}_sha256" in new
  }
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
  """Hold the lock of this file; yield False if another process holds it.

  A file system without locks grants it to everybody.
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
