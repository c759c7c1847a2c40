"""JAX's persistent compilation cache, for the user's next run.

JAX finds a compiled program by its code, its flags, its devices and the
versions that compiled it. It is the same program, so results are the same bits.
Only the command line turns the cache on (`enable`); the library leaves JAX's
configuration alone.
"""

from collections.abc import MutableMapping
import contextlib
import os
from pathlib import Path
import tempfile

SWITCH = "DFKT_COMPILATION_CACHE"  # off: no program is kept
DIRECTORY = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable takes precedence
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# JAX's default, 1 second, leaves out most programs of a small run.
DEFAULT_SECONDS = "0.1"


def enable(
  environment: MutableMapping[str, str] = os.environ,
) -> Path | None:
  """Let JAX keep compiled programs in a folder that only this user can read.

  The folder is JAX_COMPILATION_CACHE_DIR, or dfkt_jax/xla in XDG_CACHE_HOME or
  ~/.cache. Call this before JAX is imported, which reads the environment then;
  a process that has already imported it keeps its own settings.

  Returns:
    The folder, or None where programs are compiled anew: DFKT_COMPILATION_CACHE
    is off, or the user's cache folder cannot be written to.
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
  environment.setdefault(LEAST_SECONDS, DEFAULT_SECONDS)
  return folder


def _folder(environment):
  """Return the user's folder, made if it does not exist, or None."""
  home = environment.get("XDG_CACHE_HOME", "")
  with contextlib.suppress(OSError, RuntimeError):  # the latter: no home
    # The XDG standard requires relative paths to be ignored.
    base = Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()
    folder = base / "dfkt_jax" / "xla"
    # Programs in it are run, so nobody else may write to it.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder):
      return folder
  return None
