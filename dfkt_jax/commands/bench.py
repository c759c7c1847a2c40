"""`dfkt bench`: times of this machine, as JSON lines, and beside PyTorch's."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console
from rich.table import Table
import tyro

from dfkt_jax import files, parallel
from dfkt_jax.bench import (
  against,
  design,
  scaling,
  timing,
  topologies,
  workloads,
)
from dfkt_jax.bench.workloads import Settings
from dfkt_jax.commands import experiments, rehearsal
from dfkt_jax.errors import UsageError

# XLA need not make fast code of programs that are only read.
UNOPTIMISED = (
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@dataclasses.dataclass(frozen=True)
class Bench:
  """Times the hot paths of data-free distillation; one JSON object a line.

  'inversion', 'generator', 'distill' and 'round' are those of the PyTorch
  reference, with its flags; 'all' is the four of them. 'scaling' counts what
  1, 2, 4 and 8 devices say to each other, in programs compiled for CPUs, or
  what the chips of a --topology do.
  'loops' and 'pooling' time single design decisions.
  """

  workload: tyro.conf.Positional[
    Literal[
      "inversion",
      "generator",
      "distill",
      "round",
      "all",
      "scaling",
      "loops",
      "pooling",
    ]
  ]
  settings: Settings = Settings()
  # data=N devices (default: one; of a CPU the two that a run would have)
  mesh: str | None = None
  against: Literal["torch"] | None = None  # alternates with PyTorch
  # of TPUs that need not be there, such as v5e:4x4, to compile 'scaling' for
  topology: str | None = None
  # MODULE:NAME to compile for 'scaling' instead; it makes or distils images
  experiment: str | None = None
  # FIELD=VALUE words for the experiment's fields, such as transfer.kd.lr=0.1
  set: tuple[str, ...] = ()
  reference: Path | None = None  # default: $DFKT_TORCH_REFERENCE, or ../shared
  repeats: int = 3  # of both sides
  json: Path | None = None  # also write what was found into this file

  def run(self, console: Console) -> None:
    """Prints records as they come.

    Raises:
      DfktError: settings that describe no run, or a reference that fails.
    """
    alone = self.workload in ("loops", "pooling", "scaling")
    if alone and (self.against or self.mesh):
      raise UsageError(
        f"dfkt bench {self.workload} takes no --against and no --mesh: leave"
        " them out"
      )
    for flag in ("topology", "experiment", "set"):
      value = getattr(self, flag)
      if value and self.workload != "scaling":
        raise UsageError(
          f"--{flag} is for dfkt bench scaling, and this is dfkt bench"
          f" {self.workload}: leave it out"
        )
    if self.workload in ("loops", "pooling"):
      self._write("records", _shown(console, getattr(design, self.workload)()))
    elif self.workload == "scaling":
      found = _shown(console, self._scaling())
      console.print(scaling.table(found))
      self._write("programs", found)
    elif self.against:
      self._write("ratios", self._race(console))
    else:
      found = timing.records(self._names(), self.settings, self._mesh())
      self._write("records", _shown(console, found))

  def _names(self):
    names = tuple(workloads.WORKLOADS)
    return names if self.workload == "all" else (self.workload,)

  def _mesh(self):
    mesh = parallel.named_mesh(self.mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return mesh if self.mesh or on_cpu else parallel.make_mesh(1)

  def _scaling(self):
    if self.set and not self.experiment:
      raise UsageError("--set is for the fields of an --experiment: name one")
    if self.experiment and self.settings != Settings():
      raise UsageError(
        "--arch, --batch and the like are not an --experiment's: change its"
        " fields by --set FIELD=VALUE"
      )
    meshes = self._meshes()  # before a network is read, which begins JAX
    if self.experiment:
      config = experiments.choose(self.experiment, None, self.set)
      pieces = rehearsal.prepare(config)
      about = {"experiment": self.experiment, "set": self.set}
    else:
      pieces = functools.partial(scaling.pieces, self.settings)
      about = {
        name: getattr(self.settings, name)
        for name in ("arch", "batch", "precision")
      }
    return scaling.measure(pieces, about, meshes)

  def _meshes(self):
    jax.config.update("jax_platforms", "cpu")  # it compiles and runs nothing
    if self.topology:
      return [topologies.described(self.topology)]
    if not self.experiment:
      workloads.check_shares(self.settings.batch, max(scaling.COUNTS))
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + UNOPTIMISED
    jax.config.update("jax_num_cpu_devices", max(scaling.COUNTS))
    return [parallel.make_mesh(count) for count in scaling.COUNTS]

  def _race(self, console):
    reference = against.find_reference(self.reference)
    if self.repeats < 1:
      raise UsageError(f"--repeats is {self.repeats}: give 1 or more")
    # Two frameworks share the device's memory, and ours would take most of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh = self._mesh()
    platform = mesh.devices.flat[0].platform
    # Those of a CPU are the processors that PyTorch's threads have.
    if mesh.size > 1 and platform != "cpu":
      raise UsageError(
        f"--mesh {self.mesh} is {mesh.size} {platform} devices and the PyTorch"
        " reference has one: leave --mesh out with --against torch"
      )
    race = against.race(
      self._names(), self.settings, mesh, reference, self.repeats
    )
    found = []
    for record, ratios in race:
      if record:
        _say(console, record)
      found += ratios
    console.print(_table(found))
    return found

  def _write(self, name, records):
    if self.json is not None:
      files.write_json(self.json, {name: records})


def _shown(console, records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
  found = []
  for record in records:
    _say(console, record)
    found.append(record)
  return found


def _say(console, record):
  console.print(json.dumps(record), markup=False, highlight=False)


def _table(ratios) -> Table:
  table = Table(title="images a second, ours over PyTorch's")
  for name in ("workload", "PyTorch", "median", "min", "max", "ours", "its"):
    left = name in ("workload", "PyTorch")
    table.add_column(name, justify="left" if left else "right")
  for row in ratios:
    way = "compiled" if row["torch_compile"] else "eager"
    table.add_row(
      row["workload"],
      f"{way}, {row['torch_layout']}",
      *(f"{row[name]:.2f}" for name in ("ratio", "min", "max")),
      f"{row['images_per_second']:,.1f}",
      f"{row['torch_images_per_second']:,.1f}",
    )
  return table
