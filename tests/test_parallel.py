import jax
import jax.numpy as jnp
import pytest

from dfkt_jax import parallel
from dfkt_jax.errors import UsageError


def test_noise_drawn_inside_jit_is_split():
  mesh = parallel.make_mesh(8)
  draw = lambda key: parallel.split(jax.random.normal(key, (16, 3)))
  with jax.set_mesh(mesh):
    noise = jax.jit(draw)(jax.random.key(0))
  assert {shard.data.shape for shard in noise.addressable_shards} == {(2, 3)}
  alone = jax.jit(draw)(jax.random.key(0))
  assert (noise == alone).all()


def test_what_does_not_divide_is_left_alone():
  mesh = parallel.make_mesh(8)
  with jax.set_mesh(mesh):
    odd, scalar = jax.jit(lambda: parallel.split((jnp.ones(9), jnp.ones(()))))()
  assert odd.shape == (9,)
  assert scalar.shape == ()


@pytest.mark.parametrize("count", [0, 9, -1])
def test_devices_that_are_not_there(count):
  with pytest.raises(UsageError, match="8 cpu device"):
    parallel.make_mesh(count)


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
  mesh = parallel.named_mesh(text)
  assert (mesh.shape[parallel.DATA], mesh.shape[parallel.MODEL]) == sizes


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
    parallel.named_mesh(text)


@pytest.mark.parametrize(
  "text", ["data=9", "data=4,model=4", "data=0", "model=0"]
)
def test_a_mesh_of_devices_that_are_not_there(text):
  with pytest.raises(UsageError, match=r"8 cpu device\(s\)"):
    parallel.named_mesh(text)


def test_a_mesh_is_in_the_order_of_processes_whatever_jax_lists(monkeypatch):
  devices = jax.devices()
  monkeypatch.setattr(jax, "devices", lambda: devices[::-2] + devices[::2])
  mesh = parallel.named_mesh("data=4,model=2")
  assert list(mesh.devices.flat) == sorted(devices, key=lambda d: d.id)
  assert list(parallel.local(mesh).devices.flat) == list(mesh.devices.flat)


def test_an_array_made_whole_is_on_every_device():
  with jax.set_mesh(parallel.make_mesh(8)):
    x = jax.jit(lambda: parallel.split(jnp.arange(8)))()
    y = jax.jit(parallel.whole)(x)
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
def test_the_place_of_a_process_that_meets_no_other(environment, expected):
  parallel.start({**environment, "DFKT_COORDINATOR": "127.0.0.1:1"}, apart=True)
  assert not jax.distributed.is_initialized()
  assert parallel.place(environment) == expected


@pytest.mark.parametrize(
  ("environment", "said"),
  [
    ({"DFKT_PROCESS": "1"}, "DFKT_PROCESS is set and DFKT_PROCESSES not"),
    ({"DFKT_PROCESS": "3", "DFKT_PROCESSES": "3"}, "DFKT_PROCESS is '3'"),
  ],
)
def test_a_place_that_is_none(environment, said):
  with pytest.raises(UsageError, match=said):
    parallel.place(environment)
