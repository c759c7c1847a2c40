import importlib.util

import jax
import pytest

from dfkt_jax.bench import scaling, topologies
from dfkt_jax.bench.workloads import Settings, piece
from dfkt_jax.commands.bench import Bench
from dfkt_jax.devices.mesh import DATA, MODEL
from dfkt_jax.devices.sharding import platform
from dfkt_jax.errors import DfktError, UsageError
from dfkt_jax.network import placement
from tests.assets import package


def measure(settings, mesh):
  return scaling.measure(lambda: scaling.pieces(settings), {}, [mesh])


def test_the_chips_are_in_the_order_of_their_hosts():
  package("libtpu")
  mesh = topologies.topology_mesh("v5e:4x4")
  hosts = [device.process_index for device in mesh.devices.flat]
  assert mesh.shape == {DATA: 16, MODEL: 1}
  assert hosts == sorted(hosts)
  with jax.set_mesh(mesh):
    assert platform() == "tpu"
  assert platform() == "cpu"


@pytest.mark.parametrize("name", ["v5e:3x5", "h100"])
def test_an_unknown_topology_is_refused(name):
  package("libtpu")
  with pytest.raises(UsageError, match="unknown to libtpu .*v5e:4x4"):
    topologies.topology_mesh(name)


def test_a_batch_that_does_not_divide_over_the_chips_is_refused():
  package("libtpu")
  mesh = topologies.topology_mesh("v5e:4x4")
  with pytest.raises(UsageError, match="--batch 24 cannot be split over 16"):
    next(measure(Settings(batch=24), mesh))


def test_a_program_that_does_not_fit_the_chips_is_refused():
  package("libtpu")
  with jax.set_mesh(topologies.topology_mesh("v5e:2x2")):
    key = placement.abstract(lambda: jax.random.key(0))
    normal = lambda key: jax.random.normal(key, (2**16, 2**16))
    large = piece("large", 1, lambda key: normal(key) @ normal(key), key)
    with pytest.raises(DfktError, match="'large' does not fit the memory"):
      scaling.compile_piece(large)


def test_without_the_compiler_the_message_names_the_package(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  with pytest.raises(UsageError, match=r"pip install 'jax\[tpu\]'"):
    topologies.topology_mesh("v5e:4x4")


def test_a_topology_is_only_for_scaling():
  with pytest.raises(UsageError, match="--topology is for dfkt bench scaling"):
    Bench("distill", topology="v5e:4x4").run(None)  # type: ignore
