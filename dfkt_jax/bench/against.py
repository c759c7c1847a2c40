"""A comparison with the PyTorch reference: ours, theirs, ours, theirs, ...

The two alternate, so that other work on the machine affects both, and never run
at the same time. The reference is a new process each time; ours stays, with its
programs compiled, and waits. Both have as many threads as this process may use
processors.

On a CPU the reference runs in both of its memory layouts, and the faster one
counts, which is the one with the higher median. On a GPU it does so eagerly and
under `torch.compile`, which are compared separately.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import importlib.util
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
from typing import Any

from jax.sharding import Mesh

from dfkt_jax.bench.timing import Running
from dfkt_jax.bench.workloads import Settings
from dfkt_jax.devices.mesh import cpu_count
from dfkt_jax.errors import DfktError, UsageError

VARIABLE = "DFKT_TORCH_REFERENCE"  # path of the reference
# Beside the repository, in the folder for files that are not part of it.
REFERENCE = (
  Path(__file__).parents[3] / "shared" / "bench" / "torch_reference.py"
)
LAYOUTS = {"contiguous": (), "channels_last": ("--channels-last",)}


@dataclasses.dataclass(frozen=True)
class Torch:
  """One way to run the reference."""

  layout: str
  compile: bool = False

  @property
  def flags(self) -> tuple[str, ...]:
    """The flags of the reference for it."""
    return (*LAYOUTS[self.layout], *(("--compile",) if self.compile else ()))


def find_reference(given: Path | None) -> Path:
  """Return the reference's file, after checking that PyTorch is installed.

  Raises:
    UsageError: one of them is missing.
  """
  path = given or Path(os.environ.get(VARIABLE) or REFERENCE)
  if not path.is_file():
    raise UsageError(
      f"{path} does not exist: --against torch runs the PyTorch reference, give"
      f" its file by --reference or {VARIABLE}"
    )
  if importlib.util.find_spec("torch") is None:
    raise UsageError(
      "--against torch needs PyTorch, which is not installed: install torch"
      " beside dfkt_jax, or leave --against out"
    )
  return path


def race(
  names: Sequence[str],
  settings: Settings,
  mesh: Mesh,
  reference: Path,
  repeats: int,
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
  """Time ours and theirs, one workload after the other.

  Yields each record of either side, as soon as it is measured, with [], and at
  the end of a workload {} with its ratios (`ratio`).
  """
  device = mesh.devices.flat[0]
  for name in names:
    own = Running(name, settings, mesh)
    ours: list[dict] = []
    theirs: dict[Torch, list[dict]] = {t: [] for t in _ways(device.platform)}
    for _ in range(repeats):
      ours.append(own.record())
      yield ours[-1], []
      for way, records in theirs.items():
        records.append(_run(name, settings, reference, way, device.platform))
        yield records[-1], []
    del own
    ratios = [
      ratio(ours, {w: r for w, r in theirs.items() if w.compile == compiled})
      for compiled in sorted({way.compile for way in theirs})
    ]
    yield {}, ratios


def ratio(
  ours: Sequence[Mapping], theirs: Mapping[Torch, Sequence[Mapping]]
) -> dict[str, Any]:
  """Divide our throughput by PyTorch's, for each pair of alternating runs.

  `ratio` is the median over repeats, `min` and `max` are its extremes, against
  the layout with the higher median.
  """
  speed = lambda record: record["images_per_second"]
  middle = lambda records: statistics.median(map(speed, records))
  best = max(theirs, key=lambda way: middle(theirs[way]))
  ratios = [speed(a) / speed(b) for a, b in zip(ours, theirs[best])]
  first = ours[0]
  same = ("workload", "arch", "batch", "device", "precision", "device_kind")
  return {
    **{key: first[key] for key in same},
    "ratio": round(statistics.median(ratios), 3),
    "min": round(min(ratios), 3),
    "max": round(max(ratios), 3),
    "repeats": len(ratios),
    "images_per_second": middle(ours),
    "torch_images_per_second": middle(theirs[best]),
    "torch_layout": best.layout,
    "torch_compile": best.compile,
    "threads": first["threads"],
    "devices": first["devices"],
  }


def _ways(platform):
  compiled = (False, True) if platform == "gpu" else (False,)
  return [Torch(layout, c) for c in compiled for layout in LAYOUTS]


def _run(name, settings, reference, way, platform) -> dict[str, Any]:
  flags = {
    "workload": name,
    **dataclasses.asdict(settings),
    "device": "cuda" if platform == "gpu" else platform,
  }
  command = [sys.executable, str(reference), *way.flags]
  for flag, value in flags.items():
    command += [f"--{flag.replace('_', '-')}", str(value)]
  count = str(cpu_count())
  environment = {
    **os.environ,
    "OMP_NUM_THREADS": count,
    "MKL_NUM_THREADS": count,
  }
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
  )
  lines = done.stdout.strip().splitlines()
  try:
    record = json.loads(lines[-1])
    float(record["images_per_second"])
  except (IndexError, ValueError, KeyError, TypeError):
    printed = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
    raise DfktError(
      f"{reference} ended with code {done.returncode} and without a record of"
      f" {name!r}; it last printed: {printed}"
    ) from None
  return record
