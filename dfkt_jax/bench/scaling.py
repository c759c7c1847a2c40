"""What a round costs each of 1, 2, 4, 8 devices, counted in its programs.

The programs of a transfer round and of adaptation are compiled for so many
devices, with batch and pool split over them, and read: the arithmetic of one
device, its memory, and what it says to the others. No device is needed for
that, and none of it is a measurement of speed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.table import Table

from dfkt_jax import parallel, placement
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.bench import collectives, workloads
from dfkt_jax.bench.collectives import Collective
from dfkt_jax.bench.workloads import SPEC, Piece, Settings
from dfkt_jax.errors import DfktError

COUNTS = (1, 2, 4, 8)
SHOT_ROWS = 1024  # images of the target that the SHOT step is compiled for
# Of the workloads, those whose pieces are not another's too.
WHOLE = ("inversion", "generator", "round")


class Program(NamedTuple):
  """A compiled piece of a round."""

  name: str
  # FLOPs of all devices together, before XLA optimises; TPUs' does not say
  asked: float | None
  flops: float  # of one device, as compiled
  said: tuple[Collective, ...]
  given: int  # bytes of a device that its arguments take
  besides: int  # bytes of a device that it needs for a while
  cycles: int | None  # of a device, as the TPU's compiler estimates


def measure(
  pieces: Callable[[], Iterable[Piece]],
  about: Mapping[str, Any],
  meshes: Iterable[Mesh],
) -> Iterator[dict[str, Any]]:
  """One record a piece and mesh, whose devices may be described only.

  Args:
    pieces: makes those that are to be compiled for the current mesh.
    about: what they are pieces of; part of every record.

  Raises:
    DfktError: a program does not fit the devices' memory.
  """
  for mesh in meshes:
    with jax.set_mesh(mesh):
      for piece in pieces():
        yield record(compile_piece(piece), about, mesh)


def pieces(settings: Settings) -> Iterator[Piece]:
  """Of the workloads' rounds, and a step of SHOT, on the current mesh.

  Raises:
    UsageError: a count is not one, or the batch does not divide.
  """
  workloads.check(settings)
  for name in WHOLE:
    yield from workloads.make(name, settings, placement.outline).pieces
  _, student = workloads.networks(settings, placement.outline)
  yield _shot(settings, student)


def compile_piece(piece: Piece) -> Program:
  """For the current mesh; see `measure`."""
  lowered = jax.jit(piece.function).lower(*piece.arguments)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    said = str(error).strip().splitlines()[0][:200]
    raise DfktError(
      f"{piece.name!r} does not fit the memory of a device ({said}): give"
      " smaller batches, or more devices"
    ) from error
  text = compiled.as_text() or ""
  asked: Any = lowered.cost_analysis()
  cost: Any = compiled.cost_analysis()
  memory: Any = compiled.memory_analysis()
  return Program(
    piece.name,
    asked["flops"] if asked else None,
    cost["flops"],
    tuple(collectives.find(text)),
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    _cycles(text),
  )


def _cycles(program: str) -> int | None:
  """Of all instructions, one after the other; messages are not in it.

  A loop's are counted once, however often it goes round.
  """
  found = re.findall(r'"estimated_cycles":"(\d+)"', program)
  return sum(map(int, found)) if found else None


def _shot(settings, network) -> Piece:
  """A step of SHOT, its bank of labels split over the devices."""
  method, course = SHOT(), Course(steps=1000, batch_size=settings.batch)
  width = network.params["linear"]["kernel"].shape[0]

  def look(key):
    return parallel.split(
      Answers(
        jax.random.normal(key, (SHOT_ROWS, width)),
        jax.random.normal(key, (SHOT_ROWS, SPEC.classes)),
        jnp.ones(SHOT_ROWS, bool),
      )
    )

  def begin(key, network):
    rows = jnp.arange(settings.batch) % SHOT_ROWS
    images = jax.random.uniform(key, (settings.batch, *SPEC.shape))
    batch = parallel.split(Batch(images, rows))
    return method.init(key, network, look(key), course), batch

  def step(key, state, batch):
    return method.step(key, state, batch, course)

  key = placement.outline(lambda: jax.random.key(0))
  state, batch = placement.outline(begin, key, network)
  return workloads.piece("shot", 1, step, key, state, batch)


def record(
  program: Program, about: Mapping[str, Any], mesh: Mesh
) -> dict[str, Any]:
  """The program's figures: of each kind of collective, number and bytes."""
  kinds: dict[str, dict[str, int]] = {}
  for said in program.said:
    kind = kinds.setdefault(said.kind, {"count": 0, "bytes": 0, "largest": 0})
    kind["count"] += 1
    kind["bytes"] += said.bytes
    kind["largest"] = max(kind["largest"], said.bytes)
  return {
    "framework": "jax",
    "workload": "scaling",
    "program": program.name,
    **about,
    "device_kind": mesh.devices.flat[0].device_kind,
    "devices": mesh.size,
    "flops_per_device": round(program.flops),
    "argument_bytes_per_device": program.given,
    "temporary_bytes_per_device": program.besides,
    "estimated_cycles": program.cycles,
    "collectives": kinds,
  }


def table(records: Sequence[Mapping[str, Any]]) -> Table:
  """Rows of programs and devices."""
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
    said = dict(row["collectives"])
    reduced = said.pop("all-reduce", {"count": 0, "bytes": 0})
    others = [
      f"{kind['count']} {name} {kind['bytes'] / 1e3:.1f} kB"
      for name, kind in said.items()
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
