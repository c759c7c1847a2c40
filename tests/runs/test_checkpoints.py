from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.data.stream import put
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.errors import DfktError
from dfkt_jax.runs.checkpoints import Checkpoints
from tests.networks import tiny


class State(NamedTuple):
  network: object
  pool: jax.Array
  nothing: None
  count: jax.Array


def state(seed=0, rows=16):
  pool = jnp.arange(rows * 4, dtype=jnp.uint8).reshape(rows, 4)
  return State(tiny(seed), pool, None, jnp.int32(seed))


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_state_is_restored_bit_for_bit(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(3, state(1), {"wall_seconds": 1.5})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 3
    restored, meta = checkpoints.restore(3, state(0))
  assert_same(restored, state(1))
  assert meta == {"wall_seconds": 1.5}


def test_only_the_last_two_are_kept(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    for step in range(1, 5):
      checkpoints.save(step, state(step), {})
  names = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
  assert names == {"3", "4"}


def test_a_state_saved_on_eight_devices_is_restored_on_one(tmp_path):
  mesh = make_mesh(8)
  with jax.set_mesh(mesh), Checkpoints(tmp_path) as checkpoints:
    split = put(state(2).pool, mesh)
    checkpoints.save(1, state(2)._replace(pool=split), {})
  with Checkpoints(tmp_path) as checkpoints:
    restored, _ = checkpoints.restore(1, state(0))
  assert_same(restored, state(2))
  assert len(restored.pool.sharding.device_set) == 1


def test_another_state_is_refused_in_a_sentence(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state(), {})
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(DfktError, match=f"{tmp_path}.*another --workdir"),
  ):
    checkpoints.restore(1, {"other": jnp.zeros(3)})
