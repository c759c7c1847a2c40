"""Costs of a round for each of 1, 2, 4 or 8 devices, counted in its programs.

The programs of a round of distillation and of adaptation are compiled for N
devices, with batch and replay buffer sharded over them. The compiled code shows
the arithmetic of one device, its memory, and its communication. This needs none
of the devices, and it is not a measurement of speed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.table import Table

from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.bench import collectives, workloads
from dfkt_jax.bench.collectives import Collective
from dfkt_jax.bench.workloads import SPEC, Piece, Settings
from dfkt_jax.contracts import Batch, Context, Predictions
from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import DfktError
from dfkt_jax.network import placement

COUNTS = (1, 2, 4, 8)
SHOT_ROWS = 1024  # images of the target for which the SHOT step is compiled
# Workloads that together have every piece once.
DISTINCT = ("inversion", "generator", "round")


class Program(NamedTuple):
  """A compiled piece of a round."""

  name: str
  # FLOPs of all devices before optimization; None with the TPU's compiler
  total_flops: float | None
  flops: float  # of one device, as compiled
  collectives: tuple[Collective, ...]
  argument_bytes: int  # of one device
  temporary_bytes: int  # of one device, while the program runs
  cycles: int | None  # of one device, as the TPU's compiler estimates


def measure(
  pieces: Callable[[], Iterable[Piece]],
  about: Mapping[str, Any],
  meshes: Iterable[Mesh],
) -> Iterator[dict[str, Any]]:
  """Yield a record of each piece on each mesh, whose devices need not exist.

  Args:
    pieces: makes the pieces for the current mesh.
    about: settings of the pieces, included in every record.

  Raises:
    DfktError: a program does not fit the devices' memory.
  """
  for mesh in meshes:
    with jax.set_mesh(mesh):
      for piece in pieces():
        yield record(compile_piece(piece), about, mesh)


def pieces(settings: Settings) -> Iterator[Piece]:
  """Make the workloads' pieces, and a step of SHOT, on the current mesh.

  Raises:
    UsageError: a count is not positive, or the batch does not divide.
  """
  workloads.check(settings)
  for name in DISTINCT:
    yield from workloads.make(name, settings, placement.abstract).pieces
  _, student = workloads.networks(settings, placement.abstract)
  yield _shot(settings, student)


def compile_piece(piece: Piece) -> Program:
  """Compile a piece for the current mesh; see `measure`."""
  lowered = jax.jit(piece.function).lower(*piece.arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    reason = str(error).strip().splitlines()[0][:200]
    raise DfktError(
      f"{piece.name!r} does not fit the memory of a device ({reason}): give"
      " smaller batches, or more devices"
    ) from error
  text = compiled.as_text() or ""
  total: Any = lowered.cost_analysis()
  cost: Any = compiled.cost_analysis()
  memory: Any = compiled.memory_analysis()
  return Program(
    piece.name,
    total["flops"] if total else None,
    cost["flops"],
    tuple(collectives.find(text)),
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    _cycles(text),
  )


def _cycles(program: str) -> int | None:
  """Add up the cycles of all instructions, without communication.

  Those of a loop are counted once, whatever the number of iterations.
  """
  found = re.findall(r'"estimated_cycles":"(\d+)"', program)
  return sum(map(int, found)) if found else None


def _shot(settings, network) -> Piece:
  """Make a step of SHOT, with its pseudo-labels sharded over the devices."""
  method, recipe = SHOT(), Recipe(steps=1000, batch_size=settings.batch)
  width = network.params["linear"]["kernel"].shape[0]

  def predict(key):
    return shard(
      Predictions(
        jax.random.normal(key, (SHOT_ROWS, width)),
        jax.random.normal(key, (SHOT_ROWS, SPEC.classes)),
        jnp.ones(SHOT_ROWS, bool),
      )
    )

  def begin(key, network):
    rows = jnp.arange(settings.batch) % SHOT_ROWS
    images = jax.random.uniform(key, (settings.batch, *SPEC.shape))
    batch = shard(Batch(images, rows=rows))
    context = Context(teacher=network, predictions=predict(key), recipe=recipe)
    return method.init(key, context), batch

  def step(key, state, batch):
    return method.step(key, state, Context(batch=batch, recipe=recipe))

  key = placement.abstract(lambda: jax.random.key(0))
  state, batch = placement.abstract(begin, key, network)
  return workloads.piece("shot", 1, step, key, state, batch)


def record(
  program: Program, about: Mapping[str, Any], mesh: Mesh
) -> dict[str, Any]:
  """Return the program's figures, with the collectives of each kind."""
  kinds: dict[str, dict[str, int]] = {}
  for found in program.collectives:
    kind = kinds.setdefault(found.kind, {"count": 0, "bytes": 0, "largest": 0})
    kind["count"] += 1
    kind["bytes"] += found.bytes
    kind["largest"] = max(kind["largest"], found.bytes)
  return {
    "framework": "jax",
    "workload": "scaling",
    "program": program.name,
    **about,
    "device_kind": mesh.devices.flat[0].device_kind,
    "devices": mesh.size,
    "flops_per_device": round(program.flops),
    "argument_bytes_per_device": program.argument_bytes,
    "temporary_bytes_per_device": program.temporary_bytes,
    "estimated_cycles": program.cycles,
    "collectives": kinds,
  }


def table(records: Sequence[Mapping[str, Any]]) -> Table:
  """Make a table with a row for each program and number of devices."""
  shown = Table(title="per device, of one step")
  for name in ("program", "devices", "GFLOP", "of one", "memory, MB"):
    shown.add_column(name, justify="left" if name == "program" else "right")
  for name in ("all-reduces", "MB", "others"):
    shown.add_column(name, justify="left" if name == "others" else "right")
  alone = {
    row["program"]: row["flops_per_device"]
    for row in records
    if row["devices"] == 1
  }
  for row in records:
    kinds = dict(row["collectives"])
    reduced = kinds.pop("all-reduce", {"count": 0, "bytes": 0})
    others = [
      f"{kind['count']} {name} {kind['bytes'] / 1e3:.1f} kB"
      for name, kind in kinds.items()
    ]
    flops, whole = row["flops_per_device"], alone.get(row["program"])
    shown.add_row(
      row["program"],
      str(row["devices"]),
      f"{flops / 1e9:.2f}",
      f"{flops / whole:.1%}" if whole else "",
      f"{_memory(row) / 1e6:,.0f}",
      str(reduced["count"]),
      f"{reduced['bytes'] / 1e6:.2f}",
      ", ".join(others),
    )
  return shown


def _memory(row):
  return row["argument_bytes_per_device"] + row["temporary_bytes_per_device"]
