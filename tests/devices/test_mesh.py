"""Meshes, their names, and a CPU that is split into devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dfkt_jax.devices import processes
from dfkt_jax.devices.mesh import (
  CPU_DEVICES_FLAG,
  DATA,
  MODEL,
  cpu_count,
  local_mesh,
  make_mesh,
  parse_mesh,
)
from dfkt_jax.devices.processes import process_rank
from dfkt_jax.devices.sharding import replicate, shard
from dfkt_jax.errors import UsageError
from tests.networks import save_tiny

# Prints how many devices there are once a mesh has been named.
STOP_AT_THE_MESH = """
import sys, jax
from dfkt_jax.cli import dispatch
from dfkt_jax.devices import mesh

def make_mesh(**sizes):
  print(len(jax.devices()))
  sys.exit()

mesh.make_mesh = make_mesh
dispatch.main(sys.argv[1:])
"""


def fresh(code, *words, **environment):
  """Run Python where nothing gives the number of CPU devices."""
  kept = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
  flags = [
    flag
    for flag in os.environ.get("XLA_FLAGS", "").split()
    if CPU_DEVICES_FLAG not in flag
  ]
  kept |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
  done = subprocess.run(
    [sys.executable, *code, *map(str, words)],
    env={**kept, **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_noise_drawn_inside_jit_is_sharded():
  mesh = make_mesh(8)
  draw = lambda key: shard(jax.random.normal(key, (16, 3)))
  with jax.set_mesh(mesh):
    noise = jax.jit(draw)(jax.random.key(0))
  assert {shard.data.shape for shard in noise.addressable_shards} == {(2, 3)}
  alone = jax.jit(draw)(jax.random.key(0))
  assert (noise == alone).all()


def test_what_does_not_divide_is_left_alone():
  mesh = make_mesh(8)
  with jax.set_mesh(mesh):
    odd, scalar = jax.jit(lambda: shard((jnp.ones(9), jnp.ones(()))))()
  assert odd.shape == (9,)
  assert scalar.shape == ()


@pytest.mark.parametrize("count", [0, 9, -1])
def test_devices_that_are_not_there(count):
  with pytest.raises(UsageError, match="8 cpu device"):
    make_mesh(count)


@pytest.mark.parametrize(
  ("text", "sizes"),
  [
    (None, (8, 1)),
    ("data=2", (2, 1)),
    ("data=4,model=2", (4, 2)),
    ("model=4", (2, 4)),
  ],
)
def test_a_mesh_by_its_name(text, sizes):
  mesh = parse_mesh(text)
  assert (mesh.shape[DATA], mesh.shape[MODEL]) == sizes


@pytest.mark.parametrize(
  "text",
  [
    "8",
    "data",
    "data=x",
    "data=²",
    "data=-1",
    "rows=2",
    "data=2,data=2",
    "data=1,",
  ],
)
def test_a_mesh_that_cannot_be_read(text):
  with pytest.raises(UsageError, match=r"--mesh .* expected data=N"):
    parse_mesh(text)


@pytest.mark.parametrize(
  "text", ["data=9", "data=4,model=4", "data=0", "model=0"]
)
def test_a_mesh_of_devices_that_are_not_there(text):
  with pytest.raises(UsageError, match=r"8 cpu device\(s\)"):
    parse_mesh(text)


@pytest.mark.parametrize(
  ("text", "sizes"), [("data=3", (3, 1)), ("data=2,model=2", (2, 2))]
)
def test_a_cpu_is_split_into_the_devices_that_are_named(text, sizes):
  found = fresh(
    ["-c"],
    "from dfkt_jax.devices.mesh import parse_mesh; import jax;"
    f"mesh = parse_mesh({text!r});"
    "x = jax.device_put(0.0, jax.NamedSharding(mesh, jax.P()));"
    "print((*mesh.devices.shape, len(x.devices()), len(jax.devices())))",
  )
  count = sizes[0] * sizes[1]
  assert found.strip() == str((*sizes, count, count))


@pytest.mark.parametrize(
  ("processors", "text", "environment", "count"),
  [
    (1, None, {}, 1),
    (2, None, {}, 2),
    (16, None, {}, 2),
    (16, "data=1", {}, 1),
    (16, None, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
  ],
)
def test_a_cpu_is_two_devices_by_default(processors, text, environment, count):
  found = fresh(
    ["-c"],
    "from dfkt_jax.devices import mesh;"
    f"mesh.cpu_count = lambda: {processors};"
    f"print(mesh.parse_mesh({text!r}).size)",
    **environment,
  )
  assert int(found) == count


MANY_STEPS = """
import jax, jax.numpy as jnp
from dfkt_jax.devices.loops import Loops
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.devices.sharding import shard

def body(x, index):
  sums = [jnp.sin(index + part * x).sum(0) for part in range(4)]
  return shard(0.9 * x + 0.01 * sum(sums)), sums[0].sum()

with jax.set_mesh(parse_mesh("data=2")):
  x = jax.jit(lambda: shard(jnp.ones((64, 64))))()
  repeat = Loops(rolled=False).repeat(body, 500)
  for round in range(6):
    x, _ = repeat(x, 500 * round)
  jax.block_until_ready(x)
print("done")
"""


def test_many_steps_on_two_devices_of_two_threads_come_to_an_end():
  """XLA:CPU would deadlock if too many steps were launched at once."""
  assert fresh(["-c"], MANY_STEPS, NPROC="2") == "done\n"


REFUSED = """
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.errors import UsageError
try:
  parse_mesh("data=3")
except UsageError as error:
  print(error)
"""


@pytest.mark.parametrize(
  ("before", "environment", "count"),
  [
    ("import jax; jax.devices()", {}, 1),
    ("", {"JAX_NUM_CPU_DEVICES": "2"}, 2),
    ("", {"XLA_FLAGS": f"--{CPU_DEVICES_FLAG}=2"}, 2),
  ],
  ids=["too late", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS"],
)
def test_a_cpu_is_left_as_it_is(before, environment, count):
  said = fresh(["-c"], before + REFUSED, **environment)
  assert f"--mesh data=3: this machine has {count} cpu device(s)" in said


def test_more_devices_than_anyone_has_are_refused_at_once():
  said = fresh(["-c"], REFUSED.replace("data=3", "data=99999999999"))
  assert "this machine has 1024 cpu device(s)" in said


@pytest.mark.parametrize(
  "words",
  [
    "distill noise --teacher {t} --student convnet-half",
    "distill offline --teacher {t} --student convnet-half"
    " --transfer-set digits/train",
    "distill random --teacher {t} --student convnet-half"
    " --pool digits/train --pool-cache {c}",
    "synthesize deep-inversion --teacher {t}",
    "adapt tent --source {t} --target digits/train --pool-cache {c}",
    "teacher train --arch convnet-half --dataset digits/train",
    "run experiments/digits.py:noise",
    "evaluate {t} --dataset digits/test",
  ],
)
def test_a_command_names_its_mesh_before_jax_computes(tmp_path, words):
  save_tiny(tmp_path / "t")
  words = words.format(t=tmp_path / "t", c=tmp_path / "c").split()
  flags = () if words[0] == "evaluate" else ("--workdir", tmp_path / "w")
  found = fresh(["-c"], STOP_AT_THE_MESH, *words, *flags, "--mesh", "data=3")
  assert found.split()[-1] == "3"


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flags", "count"),
  [("", min(2, cpu_count())), ("--mesh data=4", 4)],
)
def test_a_benchmark_on_a_cpu_that_is_split(flags, count):
  words = f"bench distill --batch 4 --steps 1 {flags}"
  record = json.loads(fresh(["-m", "dfkt_jax"], *words.split()))
  assert record["devices"] == count


@pytest.mark.slow
def test_an_experiment_is_compiled_for_cpus_that_are_split(tmp_path):
  save_tiny(tmp_path / "t")
  (tmp_path / "mine.py").write_text(f"""
from pathlib import Path
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.synthesis.deep_inversion import DeepInversion
few = Synthesize(
  DeepInversion(synthesis_batch_size=8), Path({str(tmp_path / "t")!r})
)
""")
  words = ("bench", "scaling", "--experiment", f"{tmp_path}/mine.py:few")
  lines = fresh(["-m", "dfkt_jax"], *words).splitlines()
  records = [json.loads(line) for line in lines if line.startswith("{")]
  assert [record["devices"] for record in records] == [1, 2, 4, 8]


def test_a_mesh_is_in_the_order_of_processes_whatever_jax_lists(monkeypatch):
  devices = jax.devices()
  monkeypatch.setattr(jax, "devices", lambda: devices[::-2] + devices[::2])
  mesh = parse_mesh("data=4,model=2")
  assert list(mesh.devices.flat) == sorted(devices, key=lambda d: d.id)
  assert list(local_mesh(mesh).devices.flat) == list(mesh.devices.flat)


def test_a_replicated_array_is_on_every_device():
  with jax.set_mesh(make_mesh(8)):
    x = jax.jit(lambda: shard(jnp.arange(8)))()
    y = jax.jit(replicate)(x)
  assert y.is_fully_replicated
  assert not x.is_fully_replicated
  assert (x == y).all()


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, (0, 1)),
    ({"DFKT_PROCESS": "1", "DFKT_PROCESSES": "3"}, (1, 3)),
    ({"DFKT_PROCESS": "", "DFKT_PROCESSES": ""}, (0, 1)),
  ],
)
def test_the_rank_of_a_process_that_is_not_connected(environment, expected):
  processes.initialize(
    {**environment, "DFKT_COORDINATOR": "127.0.0.1:1"}, independent=True
  )
  assert not jax.distributed.is_initialized()
  assert process_rank(environment) == expected


@pytest.mark.parametrize(
  ("environment", "said"),
  [
    ({"DFKT_PROCESS": "1"}, "DFKT_PROCESS is set and DFKT_PROCESSES not"),
    ({"DFKT_PROCESS": "3", "DFKT_PROCESSES": "3"}, "DFKT_PROCESS is '3'"),
  ],
)
def test_a_rank_that_is_out_of_range(environment, said):
  with pytest.raises(UsageError, match=said):
    process_rank(environment)
