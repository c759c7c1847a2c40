import jax
import pytest

from dfkt_jax.bench import collectives, scaling, topologies, workloads
from dfkt_jax.bench.scaling import Program
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.network import placement
from tests.assets import package
from tests.bench.networks import SETTINGS, small  # noqa: F401

PROGRAM = """
  %all-reduce.3 = (f32[16]{0}, f32[3,3]{1,0}) all-reduce(%a, %b), channel_id=1
  ROOT %all-gather.1 = u8[64,32,32,3]{3,2,1,0} all-gather(%p), dimensions={0}
  %fusion.1 = f32[2]{0} fusion(%all-reduce.3), calls=%all-gather.9
  %gather.2 = f32[2]{0} gather(%x, %y)
  %ags = (bf16[4]{0}, bf16[32]{0}) all-gather-start(%z), dimensions={0}
  %agd = bf16[32]{0} all-gather-done(%ags)
  %cp = pred[] collective-permute(%q), source_target_pairs={{0,1}}
"""


def mesh_of(topology):
  if topology is None:
    return make_mesh(8)
  package("libtpu")
  return topologies.topology_mesh(topology)


def test_collectives_are_read_from_the_program():
  found = list(collectives.find(PROGRAM))
  assert [(c.kind, c.bytes) for c in found] == [
    ("all-reduce", 4 * (16 + 9)),
    ("all-gather", 64 * 32 * 32 * 3),
    ("all-gather", 2 * 32),
    ("collective-permute", 1),
  ]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("topology", [None, "v5e:2x4"])
def test_no_device_ever_gathers_images_or_the_replay_buffer(topology):
  mesh = mesh_of(topology)
  with jax.set_mesh(mesh):
    pieces = list(scaling.pieces(SETTINGS))
    programs = {p.name: scaling.compile_piece(p) for p in pieces}
    networks = workloads.networks(SETTINGS, placement.abstract)
  # Arrays of parameters and of statistics: two or so a layer.
  layers = max(len(jax.tree.leaves(n.variables)) for n in networks)
  assert set(programs) == {
    *("inversion", "generator", "student from generator", "latents"),
    *("push to replay buffer", "student from replay buffer", "shot"),
  }
  labels = 8 * SETTINGS.batch  # two i32 of each drawn image
  for name, program in programs.items():
    if topology is None:
      share = program.flops / program.total_flops
      assert share < 0.2, f"{name}: {share:.1%} of the work on one of 8 devices"
    else:
      assert program.cycles
    reduced = [c for c in program.collectives if c.kind == "all-reduce"]
    others = [c for c in program.collectives if c.kind != "all-reduce"]
    assert all(c.bytes <= labels for c in others), (name, others)
    assert len(reduced) <= layers, name
    assert bool(reduced) == (name != "push to replay buffer")
  assert not programs["push to replay buffer"].collectives
  # Only the drawn images of the buffer are sent.
  images = [
    array
    for found in programs["student from replay buffer"].collectives
    for array in found.arrays
    if array[0] == "u32"
  ]
  assert images == [("u32", (SETTINGS.batch, 32 * 32 * 3 // 4))]


def test_the_table_has_a_row_for_each_program_and_number():
  found = tuple(collectives.find(PROGRAM))
  programs = {
    1: Program("p", 8e9, 8e9, (), 2_000_000, 10_000, None),
    2: Program("p", 8e9, 4e9, found, 1_000_000, 0, None),
  }
  records = [
    scaling.record(program, {"batch": 16}, make_mesh(count))
    for count, program in programs.items()
  ]
  assert records[0]["collectives"] == {}
  assert records[0]["batch"] == 16
  assert records[1]["collectives"]["all-gather"] == {
    **dict(count=2, bytes=196_608 + 64, largest=196_608)
  }
  shown = scaling.table(records)
  cells = [list(column.cells) for column in shown.columns]
  assert cells[1:7] == [
    ["1", "2"],
    ["8.00", "4.00"],
    ["100.0%", "50.0%"],
    ["2", "1"],
    ["0", "1"],
    ["0.00", "0.00"],
  ]
