"""Arrays that methods make once, on the host, before the first step."""

from collections.abc import Mapping, Sequence
import io
from pathlib import Path
from typing import Any
import zipfile

import jax
import numpy as np

from dfkt_jax import files
from dfkt_jax.contracts import Context, Prepares
from dfkt_jax.devices.processes import barrier
from dfkt_jax.errors import DfktError, UsageError

FILE_NAME = "assets.npz"


def make(
  workdir: Path,
  methods: Sequence[Any],
  seed: int,
  context: Context,
  given: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray] | None:
  """Collect the assets of a run: those given, and what each method prepares.

  The first process makes them once and writes WORKDIR/assets.npz. All processes
  read that file, and so does a resumed run, which may be on another machine.

  Args:
    given: assets that are there already, such as a selector's.

  Returns:
    Arrays by name, or None without any.

  Raises:
    UsageError: two methods name an asset alike.
    DfktError: the file of a resumed run cannot be read.
  """
  preparing = [method for method in methods if isinstance(method, Prepares)]
  path = workdir / FILE_NAME
  if jax.process_index() == 0 and not path.exists():
    assets = dict(given or {})
    # Stream 1 of the seed is a selector's (`Summarizes`).
    for number, method in enumerate(preparing, 2):
      rng = np.random.default_rng([seed, number])
      made = method.prepare(rng, context._replace(assets=assets))
      twice = sorted(set(made) & set(assets))
      if twice:
        raise UsageError(
          f"{type(method).__name__}.prepare makes an asset {twice[0]!r} and"
          " there is one of that name: give it another name"
        )
      assets |= made
    if assets:
      buffer = io.BytesIO()
      np.savez(buffer, **jax.device_get(assets))
      files.write_atomic(path, buffer.getvalue())
  # Only the first process may know whether there are any.
  barrier("the assets are written")
  return _read(path) if path.exists() else None


def _read(path: Path) -> dict[str, np.ndarray]:
  try:
    with open(path, "rb") as file, np.load(file) as held:
      return dict(held)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise DfktError(
      f"{path} cannot be read ({error}): it holds what the run's methods"
      " prepared; restore it, or use another --workdir"
    ) from error
