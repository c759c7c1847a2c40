"""Users' files become modules, each under a name of its own."""

import dataclasses
import hashlib
from importlib.machinery import SourceFileLoader
import importlib.util
from pathlib import Path
import sys
from types import ModuleType

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.user_modules.contract_checks import KIND_WORDS, Kind, check
from dfkt_jax.user_modules.version_0_1 import describe_failure

# Module names of users' files begin with it.
USER_MODULE = "dfkt_user_"

# What each of these modules was made from, by module name: a SHA-256.
_loaded: dict[str, str] = {}


def load_module(path: Path, about: str) -> ModuleType:
  """Import a Python file, or return its module if the file is unchanged.

  Args:
    about: what the file is for, as the beginning of a message.

  Raises:
    UsageError: there is no such file, or importing it fails.
  """
  if not path.is_file():
    raise UsageError(
      f"{about}: there is no file {path}; give path/to/file.py:Name"
    )
  name = _module_name(path)
  spec = importlib.util.spec_from_file_location(name, path.resolve())
  if spec is None or not isinstance(spec.loader, SourceFileLoader):
    raise UsageError(f"{about}: {path} is not a Python file (expected .py)")
  try:
    code = path.read_bytes()
  except OSError as error:
    raise files.unreadable(path, error) from error
  digest = hashlib.sha256(code).hexdigest()
  if name in sys.modules and _loaded.get(name) == digest:
    return sys.modules[name]
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their module up by name.
  sys.modules[name] = module
  try:
    # Not by the loader: its bytecode cache misses an edit of the same size
    # within a second.
    exec(spec.loader.source_to_code(code, str(path.resolve())), vars(module))
  except Exception as error:
    del sys.modules[name]
    raise UsageError(
      f"{about}: importing {path} failed with {describe_failure(error)}"
    ) from error
  _loaded[name] = digest
  return module


def _module_name(path: Path) -> str:
  """Return a name that no other module has, be it json or another method.py."""
  digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
  return f"{USER_MODULE}{path.stem}_{digest[:12]}"


def load_method(name: str, kind: Kind) -> type:
  """Return the class of path/to/file.py:ClassName.

  Raises:
    UsageError: there is no such class, or it does not meet the contract.
  """
  path, _, attribute = name.rpartition(":")
  about = f"{KIND_WORDS[kind]} {name!r}"
  module = load_module(Path(path), about)
  method = vars(module).get(attribute)
  if not isinstance(method, type) or not dataclasses.is_dataclass(method):
    raise UsageError(
      f"{about}: {path} has no dataclass {attribute!r}; name the class"
      " behind the colon and decorate it with @dataclass(frozen=True)"
    )
  check(method, kind, about)
  return method
