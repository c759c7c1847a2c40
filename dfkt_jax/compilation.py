"""Compiled programs are kept on disk, for the user's next run.

JAX does the keeping: a program is found again by its code, its flags, its
devices and the versions that compiled it, and is the same program, so results
are the same bits. Only the command line turns this on (`keep_on_disk`); the
library leaves JAX's configuration alone.
"""

from collections.abc import MutableMapping
import contextlib
import os
from pathlib import Path
import tempfile

SWITCH = "DFKT_COMPILATION_CACHE"  # off: nothing is kept
DIRECTORY = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable, which is heeded
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# JAX's 1 second leaves out most programs of a small run.
QUICKEST = "0.1"


def keep_on_disk(
  environment: MutableMapping[str, str] = os.environ,
) -> Path | None:
  """Has JAX keep what it compiles, in a folder of this user's alone.

  ~/.cache/dfkt_jax/xla, or where XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR
  say. To be called before JAX is imported, which reads the environment then; a
  process that has imported it already keeps its own settings.

  Returns:
    The folder; None where DFKT_COMPILATION_CACHE is off or the folder of the
    user's cache cannot be written to, and programs are compiled anew.
  """
  if environment.get(SWITCH, "").lower() in ("off", "0", "no", "false"):
    environment.pop(DIRECTORY, None)
    return None
  if environment.get(DIRECTORY):
    return Path(environment[DIRECTORY])
  folder = _folder(environment)
  if folder is None:
    return None
  environment[DIRECTORY] = str(folder)
  environment.setdefault(LEAST_SECONDS, QUICKEST)
  return folder


def _folder(environment):
  """The user's, made if need be; None if it takes no files."""
  home = environment.get("XDG_CACHE_HOME", "")
  with contextlib.suppress(OSError, RuntimeError):  # the latter: no home
    # The standard has relative paths ignored.
    base = Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()
    folder = base / "dfkt_jax" / "xla"
    # What is read from here is run: nobody else may write to it.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder):
      return folder
  return None
