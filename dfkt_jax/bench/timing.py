"""Seconds, memory and arithmetic of a workload, in one record."""

from collections.abc import Iterable, Iterator
import resource
import statistics
import sys
import time
from typing import Any

import jax
from jax.sharding import Mesh

from dfkt_jax.bench import workloads
from dfkt_jax.bench.peaks import peak
from dfkt_jax.bench.workloads import Piece, Settings, Workload
from dfkt_jax.devices.mesh import cpu_count

WARM_UP = 2  # steps before those that are timed, as in the reference


class Running:
  """A compiled workload, whose every record continues after the last one."""

  def __init__(self, name: str, settings: Settings, mesh: Mesh):
    self._settings, self._mesh, self._name = settings, mesh, name
    with jax.set_mesh(mesh):
      workload = workloads.make(name, settings)
      jax.block_until_ready(workload.state)
      self._flops = count_flops(workload.pieces)
      self._workload: Workload = workload
      self._state, self._done = workload.state, 0
      first = self._step()
      warm = [self._step() for _ in range(WARM_UP - 1)]
      # Tracing and compilation, without the step.
      self.compile_seconds = max(0.0, first - statistics.median(warm))

  def _step(self) -> float:
    start = time.perf_counter()
    self._state, infos = self._workload.step(self._state, self._done)
    jax.block_until_ready((self._state, infos))
    self._done += 1
    return time.perf_counter() - start

  def record(self) -> dict[str, Any]:
    """Time `settings.steps` steps; return the reference's keys, and ours."""
    settings, mesh = self._settings, self._mesh
    with jax.set_mesh(mesh):
      seconds = [self._step() for _ in range(settings.steps)]
    median = statistics.median(seconds)
    device = mesh.devices.flat[0]
    most = peak(device.device_kind, settings.precision)
    rate = self._flops / median
    return {
      "framework": "jax",
      "workload": self._name,
      "arch": settings.arch,
      "batch": settings.batch,
      "device": _platform(device),
      "precision": settings.precision,
      "seconds_per_step": round(median, 6),
      "images_per_second": round(
        settings.batch * self._workload.updates / median, 1
      ),
      "device_kind": device.device_kind,
      "devices": mesh.size,
      "threads": cpu_count(),
      "compile_seconds": round(self.compile_seconds, 2),
      **memory(device),
      "flops_per_second": round(rate),
      "share_of_peak": most and round(rate / (most * mesh.size), 4),
    }


def records(
  names: Iterable[str], settings: Settings, mesh: Mesh
) -> Iterator[dict[str, Any]]:
  """Yield a record of each workload."""
  for name in names:
    yield Running(name, settings, mesh).record()


def count_flops(pieces: Iterable[Piece]) -> float:
  """Count the FLOPs of one step on all devices together.

  XLA counts them in the program as traced, before it is optimized: the
  arithmetic of the algorithm, without what the compiler adds or removes. On a
  CPU the zeros of `models.few_channels` are included, 8 % of a ResNet-20.
  """

  def flops(piece):
    lowered = jax.jit(piece.function).lower(*piece.arguments)
    cost: Any = lowered.cost_analysis()
    return piece.times * cost["flops"]

  return sum(map(flops, pieces))


def memory(device: Any) -> dict[str, int]:
  """Return the peak memory so far, under a name for its kind.

  It is that of the device where the device reports it, or else that of this
  process as the system reports it, which never falls: with several workloads it
  is the largest one until then.
  """
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return {"peak_device_bytes": stats["peak_bytes_in_use"]}
  # Kilobytes, but bytes on macOS.
  unit = 1 if sys.platform == "darwin" else 1024
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {"peak_process_bytes": used * unit}


def _platform(device):
  """Return the reference's name of a platform."""
  return "cuda" if device.platform == "gpu" else device.platform
