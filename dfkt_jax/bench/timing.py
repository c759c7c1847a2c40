"""Seconds, memory and arithmetic of a workload, as one record."""

from collections.abc import Iterable, Iterator
import resource
import statistics
import sys
import time
from typing import Any

import jax
from jax.sharding import Mesh

from dfkt_jax import parallel
from dfkt_jax.bench import workloads
from dfkt_jax.bench.peaks import peak
from dfkt_jax.bench.workloads import Piece, Settings, Workload

WARM_UP = 2  # steps that are not timed, as in the reference


class Running:
  """A workload that has been compiled and goes on where it was."""

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
      # Tracing and compilation, and no step.
      self.compile_seconds = max(0.0, first - statistics.median(warm))

  def _step(self) -> float:
    start = time.perf_counter()
    self._state, infos = self._workload.step(self._state, self._done)
    jax.block_until_ready((self._state, infos))
    self._done += 1
    return time.perf_counter() - start

  def record(self) -> dict[str, Any]:
    """Times `settings.steps` steps; the reference's keys, and ours."""
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
      "threads": parallel.processors(),
      "compile_seconds": round(self.compile_seconds, 2),
      **memory(device),
      "flops_per_second": round(rate),
      "share_of_peak": most and round(rate / (most * mesh.size), 4),
    }


def records(
  names: Iterable[str], settings: Settings, mesh: Mesh
) -> Iterator[dict[str, Any]]:
  """One record a workload, one after the other."""
  for name in names:
    yield Running(name, settings, mesh).record()


def count_flops(pieces: Iterable[Piece]) -> float:
  """Of one step on all devices together.

  Counted by XLA in the program as traced, before it is optimised: what the
  algorithm asks for, and nothing that a compiler adds or finds needless. On a
  CPU the zeros of `models.few_channels` are counted, 8 % of a ResNet-20.
  """

  def flops(piece):
    lowered = jax.jit(piece.function).lower(*piece.arguments)
    cost: Any = lowered.cost_analysis()
    return piece.times * cost["flops"]

  return sum(map(flops, pieces))


def memory(device: Any) -> dict[str, int]:
  """Peak memory so far, under the name of what it is.

  Of the device where it says so. Else of this process as the system sees it,
  which never falls: of several workloads, that of the hungriest until then.
  """
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return {"peak_device_bytes": stats["peak_bytes_in_use"]}
  # Kilobytes, but bytes on macOS.
  unit = 1 if sys.platform == "darwin" else 1024
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {"peak_process_bytes": used * unit}


def _platform(device):
  """As the reference calls it."""
  return "cuda" if device.platform == "gpu" else device.platform
