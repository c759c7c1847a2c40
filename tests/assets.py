"""Real files and packages that tests may use and the project does not ship.

Where one is missing the test is skipped, or fails if the environment says
DFKT_REQUIRE_ASSETS=1.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
  """`../shared/<name>` beside the repository."""
  return _existing(_SHARED / name)


def shared_data(name: str) -> Path:
  """`../shared/data/<name>` beside the repository."""
  return shared(f"data/{name}")


def fixtures() -> dict[str, np.ndarray]:
  """Values of released implementations; see ../shared/fixtures/README.md."""
  path = _existing(_SHARED / "fixtures" / "peer_values.npz")
  with np.load(path) as file:
    return dict(file)


def package_file(package: str, relative: str) -> Path:
  """A file of an installed package, which is not imported."""
  spec = importlib.util.find_spec(package)
  folders = spec.submodule_search_locations if spec else None
  if not folders:
    absent(f"the package {package} is not installed")
  return _existing(Path(folders[0]) / relative)


def torch() -> ModuleType:
  """PyTorch, which tests compare with and the library does not need."""
  return package("torch")


def package(name: str) -> ModuleType:
  """A package that tests alone use, and that pip does not install for them."""
  try:
    return importlib.import_module(name)
  except ImportError:
    absent(f"{name} cannot be imported")


def _existing(path):
  return path if path.exists() else absent(f"{path} is not there")


def absent(reason: str) -> NoReturn:
  """Skips the test, or fails it where everything is required."""
  if os.environ.get("DFKT_REQUIRE_ASSETS") == "1":
    pytest.fail(f"{reason}, and DFKT_REQUIRE_ASSETS=1 requires it")
  pytest.skip(reason)
