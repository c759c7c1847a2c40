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

from dfkt_jax import files
from dfkt_jax.bench import (
  against,
  design,
  scaling,
  timing,
  topologies,
  workloads,
)
from dfkt_jax.bench.workloads import Settings
from dfkt_jax.commands import experiment_programs, experiments
from dfkt_jax.devices.mesh import make_mesh, parse_mesh
from dfkt_jax.errors import UsageError

# XLA does not have to optimize programs that are only read.
UNOPTIMIZED = (
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

DESIGN = {"loops": design.loops, "pooling": design.pooling}


@dataclasses.dataclass(frozen=True)
class Bench:
  """Times the hot paths of data-free distillation; one JSON object a line.

  'inversion', 'generator', 'distill' and 'round' are those of the PyTorch
  reference, with its flags; 'all' is the four of them. 'scaling' counts what
  1, 2, 4 and 8 devices send to each other, in programs compiled for CPUs, or
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
  # data=N devices (default: one; on a CPU two, as in a run)
  mesh: str | None = None
  against: Literal["torch"] | None = None  # alternates with PyTorch
  # of TPUs to compile 'scaling' for, such as v5e:4x4; they need not exist
  topology: str | None = None
  # MODULE:NAME of an experiment to compile for 'scaling' instead
  experiment: str | None = None
  # FIELD=VALUE words for the experiment's fields, such as learner.lr=0.1
  set: tuple[str, ...] = ()
  reference: Path | None = None  # default: $DFKT_TORCH_REFERENCE, or ../shared
  repeats: int = 3  # of both sides
  json: Path | None = None  # also write what was found into this file

  def run(self, console: Console) -> None:
    """Print records as they come.

    Raises:
      DfktError: settings that do not describe a run, or a reference that
        fails.
    """
    alone = self.workload in (*DESIGN, "scaling")
    if alone and (self.against or self.mesh):
      raise UsageError(
        f"dfkt bench {self.workload} takes no --against and no --mesh: leave"
        " them out"
      )
    scaling_only = {
      "topology": self.topology,
      "experiment": self.experiment,
      "set": self.set,
    }
    for flag, value in scaling_only.items():
      if value and self.workload != "scaling":
        raise UsageError(
          f"--{flag} is for dfkt bench scaling, and this is dfkt bench"
          f" {self.workload}: leave it out"
        )
    if self.workload in DESIGN:
      self._write("records", _shown(console, DESIGN[self.workload]()))
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
    mesh = parse_mesh(self.mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return mesh if self.mesh or on_cpu else make_mesh(1)

  def _scaling(self):
    if self.set and not self.experiment:
      raise UsageError("--set is for the fields of an --experiment: name one")
    if self.experiment and self.settings != Settings():
      raise UsageError(
        "--arch, --batch and the like are not an --experiment's: change its"
        " fields by --set FIELD=VALUE"
      )
    meshes = self._meshes()  # first, because reading a network starts JAX
    if self.experiment:
      config = experiments.choose(self.experiment, self.set)
      pieces = experiment_programs.prepare(config)
      about = {"experiment": self.experiment, "set": self.set}
    else:
      pieces = functools.partial(scaling.pieces, self.settings)
      about = {
        "arch": self.settings.arch,
        "batch": self.settings.batch,
        "precision": self.settings.precision,
      }
    return scaling.measure(pieces, about, meshes)

  def _meshes(self):
    jax.config.update("jax_platforms", "cpu")  # it compiles and runs nothing
    if self.topology:
      return [topologies.topology_mesh(self.topology)]
    if not self.experiment:
      workloads.check_shares(self.settings.batch, max(scaling.COUNTS))
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + UNOPTIMIZED
    jax.config.update("jax_num_cpu_devices", max(scaling.COUNTS))
    return [make_mesh(count) for count in scaling.COUNTS]

  def _race(self, console):
    reference = against.find_reference(self.reference)
    if self.repeats < 1:
      raise UsageError(f"--repeats is {self.repeats}: give 1 or more")
    # Two frameworks share the device's memory, and ours would take most of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mesh = self._mesh()
    platform = mesh.devices.flat[0].platform
    # Devices of a CPU are the processors that PyTorch's threads have.
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
