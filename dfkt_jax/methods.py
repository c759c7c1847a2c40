"""Methods by name, and methods from a user's own file."""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib.util
from pathlib import Path
import sys

from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.noise import Noise

# Begins the module names of files that users name on the command line.
USER_MODULE = "dfkt_user_"

SYNTHESIZERS: Mapping[str, type] = {
  "deep-inversion": DeepInversion,
  "dfq": DFQ,
  "noise": Noise,
}


def synthesizer(name: str) -> type:
  """The method class of a name, or of path/to/file.py:ClassName.

  Raises:
    UsageError: there is none, or it lacks what a method has.
  """
  plain = name.replace("_", "-")
  if plain in SYNTHESIZERS:
    return SYNTHESIZERS[plain]
  if ":" in name:
    return _from_file(name)
  close = difflib.get_close_matches(plain, SYNTHESIZERS, n=1)
  hint = f"did you mean {close[0]}? " if close else ""
  raise UsageError(
    f"method {name!r} is unknown; {hint}expected one of"
    f" {', '.join(SYNTHESIZERS)} or path/to/file.py:ClassName"
  )


def transfer_recipe(method: type) -> Transfer:
  """How the method's paper distils, or the default."""
  return getattr(method, "transfer", Transfer())


def _from_file(name):
  path, _, attribute = name.rpartition(":")
  module = load_module(Path(path), f"method {name!r}")
  method = getattr(module, attribute, None)
  if not isinstance(method, type) or not dataclasses.is_dataclass(method):
    raise UsageError(
      f"method {name!r}: {path} has no dataclass {attribute!r}; name the class"
      " behind the colon and decorate it with @dataclass(frozen=True)"
    )
  missing = [
    function
    for function in ("init", "step", "sample")
    if not callable(getattr(method, function, None))
  ]
  if missing:
    raise UsageError(
      f"method {name!r} has no {' and no '.join(missing)}: a method has init,"
      " step and sample (dfkt_jax/synthesis/contract.py)"
    )
  return method


def load_module(path: Path, what: str):
  """Imports a Python file by its path.

  Raises:
    UsageError: it is not there, or importing it fails; `what` names the use.
  """
  if not path.is_file():
    raise UsageError(
      f"{what}: there is no file {path}; give path/to/file.py:Name"
    )
  # A name of its own: a user's json.py must not become everybody's json.
  name = f"{USER_MODULE}{path.stem}"
  spec = importlib.util.spec_from_file_location(name, path.resolve())
  if spec is None or spec.loader is None:
    raise UsageError(f"{what}: {path} is not a Python file (expected .py)")
  module = importlib.util.module_from_spec(spec)
  # Dataclasses look their module up by name.
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    del sys.modules[name]
    raise UsageError(
      f"{what}: importing {path} failed with {type(error).__name__}: {error};"
      " mend the file"
    ) from error
  return module
