"""What a round costs each of 1, 2, 4, 8 devices, counted in its programs.

The programs of a transfer round and of adaptation are compiled for so many
devices, with batch and pool split over them, and read: the arithmetic of one
device, and what it says to the others. No device is needed for that, and none
of it is a measurement of speed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from dfkt_jax import parallel
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.bench import collectives, timing, workloads
from dfkt_jax.bench.collectives import Collective
from dfkt_jax.bench.workloads import SPEC, Piece, Settings

COUNTS = (1, 2, 4, 8)
SHOT_ROWS = 1024  # images of the target that the SHOT step is compiled for
# Of the workloads, those whose pieces are not another's too.
WHOLE = ("inversion", "generator", "round")


class Program(NamedTuple):
  """A compiled piece of a round."""

  name: str
  asked: float  # FLOPs of all devices together, before XLA optimises
  flops: float  # of one device, as compiled
  said: tuple[Collective, ...]
  layers: int  # convolutions, BatchNorms and linear layers of its networks


def measure(
  settings: Settings, counts: Sequence[int] = COUNTS
) -> Iterator[dict[str, Any]]:
  """One record a program and number of devices.

  Raises:
    UsageError: there are fewer devices, or the batch does not divide.
  """
  for count in counts:
    for program in compile_round(settings, count):
      yield record(program, settings, count)


def compile_round(settings: Settings, count: int) -> Iterator[Program]:
  """The programs of the rounds, for the first so many devices."""
  mesh = parallel.make_mesh(count)
  with jax.set_mesh(mesh):
    networks = workloads.networks(settings)
    layers = _layers(*networks)
    pieces = [
      piece for name in WHOLE for piece in workloads.make(name, settings).pieces
    ]
    for piece in [*pieces, _shot(settings, networks[1])]:
      compiled = jax.jit(piece.function).lower(*piece.arguments).compile()
      cost: Any = compiled.cost_analysis()
      said = tuple(collectives.find(compiled.as_text() or ""))
      asked = timing.count_flops([piece]) / piece.times
      yield Program(piece.name, asked, cost["flops"], said, layers)


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

  key = jax.random.key(0)
  state, batch = jax.jit(begin)(key, network)
  return workloads.piece("shot", 1, step, key, state, batch)


def _layers(*networks) -> int:
  """Arrays of parameters and of statistics: two or so a layer."""
  return max(len(jax.tree.leaves(n.variables)) for n in networks)


def record(program: Program, settings: Settings, count: int) -> dict[str, Any]:
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
    "arch": settings.arch,
    "batch": settings.batch,
    "devices": count,
    "flops_per_device": round(program.flops),
    "collectives": kinds,
  }


def table(records: Sequence[Mapping[str, Any]]) -> Table:
  """Rows of programs and devices."""
  shown = Table(title="per device, of one step")
  for name in ("program", "devices", "GFLOP", "of one", "all-reduces", "MB"):
    shown.add_column(name, justify="left" if name == "program" else "right")
  shown.add_column("others")
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
      str(reduced["count"]),
      f"{reduced['bytes'] / 1e6:.2f}",
      ", ".join(others),
    )
  return shown
