import pytest

from dfkt_jax.bench import collectives, scaling
from dfkt_jax.bench.scaling import Program
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


def test_collectives_are_read_from_the_program():
  found = list(collectives.find(PROGRAM))
  assert [(c.kind, c.bytes) for c in found] == [
    ("all-reduce", 4 * (16 + 9)),
    ("all-gather", 64 * 32 * 32 * 3),
    ("all-gather", 2 * 32),
    ("collective-permute", 1),
  ]


@pytest.mark.usefixtures("small")
def test_no_device_ever_gathers_images_or_the_pool():
  programs = {p.name: p for p in scaling.compile_round(SETTINGS, 8)}
  assert set(programs) == {
    *("inversion", "generator", "student from generator", "latents"),
    *("push to pool", "student from pool", "shot"),
  }
  labels = 8 * SETTINGS.batch  # two i32 of each drawn image
  for name, program in programs.items():
    share = program.flops / program.asked
    assert share < 0.2, f"{name}: {share:.1%} of the work on one of 8 devices"
    reduced = [c for c in program.said if c.kind == "all-reduce"]
    others = [c for c in program.said if c.kind != "all-reduce"]
    assert all(c.bytes <= labels for c in others), (name, others)
    assert len(reduced) <= program.layers, name
    assert bool(reduced) == (name != "push to pool")
  assert not programs["push to pool"].said
  # Of the pool only the drawn images travel.
  images = [
    array
    for said in programs["student from pool"].said
    for array in said.arrays
    if array[0] == "u32"
  ]
  assert images == [("u32", (SETTINGS.batch, 32 * 32 * 3 // 4))]


def test_the_table_has_a_row_for_each_program_and_number():
  said = tuple(collectives.find(PROGRAM))
  programs = {
    1: Program("p", 8e9, 8e9, (), 4),
    2: Program("p", 8e9, 4e9, said, 4),
  }
  records = [scaling.record(p, SETTINGS, n) for n, p in programs.items()]
  assert records[0]["collectives"] == {}
  assert records[1]["collectives"]["all-gather"] == {
    **dict(count=2, bytes=196_608 + 64, largest=196_608)
  }
  shown = scaling.table(records)
  cells = [list(column.cells) for column in shown.columns]
  assert cells[2:6] == [
    ["8.00", "4.00"],
    ["100.0%", "50.0%"],
    ["0", "1"],
    ["0.00", "0.00"],
  ]
