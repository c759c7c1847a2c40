"""Methods by name, and methods from a user's own file."""

from collections.abc import Mapping
import dataclasses
import difflib
import importlib.util
from pathlib import Path
import sys

from dfkt_jax.adaptation.aad import AaD
from dfkt_jax.adaptation.ada_bn import AdaBN
from dfkt_jax.adaptation.ada_contrast import AdaContrast
from dfkt_jax.adaptation.cowa import CoWA
from dfkt_jax.adaptation.cpga import CPGA
from dfkt_jax.adaptation.dine import DINE
from dfkt_jax.adaptation.gan_3c import GAN3C
from dfkt_jax.adaptation.notela import NOTELA
from dfkt_jax.adaptation.nrc import NRC
from dfkt_jax.adaptation.sfda_de import SFDADE
from dfkt_jax.adaptation.sfit import SFIT
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus
from dfkt_jax.adaptation.tent import Tent
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.odsd import ODSD
from dfkt_jax.openworld.random_selection import RandomSelection
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.noise import Noise
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.zskd import ZSKD

# Begins the module names of files that users name on the command line.
USER_MODULE = "dfkt_user_"

SYNTHESIZERS: Mapping[str, type] = {
  "deep-inversion": DeepInversion,
  "dfq": DFQ,
  "noise": Noise,
  "soft-target": SoftTarget,
  "zskd": ZSKD,
}


OPENWORLD: Mapping[str, type] = {
  "dfnd": DFND,
  "mosaic-kd": MosaicKD,
  "odsd": ODSD,
  "random": RandomSelection,
}


# Of a transfer set that is there already.
STORED: Mapping[str, type] = {
  "offline": Offline,
}


ADAPTERS: Mapping[str, type] = {
  "3c-gan": GAN3C,
  "aad": AaD,
  "ada-bn": AdaBN,
  "ada-contrast": AdaContrast,
  "cowa": CoWA,
  "cpga": CPGA,
  "dine": DINE,
  "notela": NOTELA,
  "nrc": NRC,
  "sfda-de": SFDADE,
  "sfit": SFIT,
  "shot": SHOT,
  "shot++": SHOTPlusPlus,
  "tent": Tent,
}


def find(name: str, methods: Mapping[str, type]) -> type:
  """The class of a name among `methods`, or of path/to/file.py:ClassName.

  Raises:
    UsageError: there is none, or it lacks what a method has.
  """
  plain = name.lower().replace("_", "-")
  if plain in methods:
    return methods[plain]
  if ":" in name:
    return _from_file(name, adapts=methods is ADAPTERS)
  close = difflib.get_close_matches(plain, methods, n=1)
  hint = f"did you mean {close[0]}? " if close else ""
  raise UsageError(
    f"method {name!r} is unknown; {hint}expected one of"
    f" {', '.join(methods)} or path/to/file.py:ClassName"
  )


def is_open_world(method: type) -> bool:
  """Whether it selects from a pool of images, or else makes its own."""
  return hasattr(method, "select")


def transfer_recipe(method: type) -> Transfer:
  """How the method's paper distils, or the default."""
  return getattr(method, "transfer", Transfer())


def _from_file(name, adapts):
  path, _, attribute = name.rpartition(":")
  module = load_module(Path(path), f"method {name!r}")
  method = getattr(module, attribute, None)
  if not isinstance(method, type) or not dataclasses.is_dataclass(method):
    raise UsageError(
      f"method {name!r}: {path} has no dataclass {attribute!r}; name the class"
      " behind the colon and decorate it with @dataclass(frozen=True)"
    )
  functions, contract = ("init", "step", "sample"), "synthesis"
  if adapts:
    functions, contract = ("init", "step", "network"), "adaptation"
  elif is_open_world(method):
    functions, contract = ("select", "init", "step", "student"), "openworld"
  missing = [
    function
    for function in functions
    if not callable(getattr(method, function, None))
  ]
  if missing:
    raise UsageError(
      f"method {name!r} has no {' and no '.join(missing)}: a method has"
      f" {', '.join(functions[:-1])} and {functions[-1]}"
      f" (dfkt_jax/{contract}/contract.py)"
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
