import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import DfktError
from dfkt_jax.runs.local_checkpoints import LocalCheckpoints

STATE = {
  "pixels": jnp.arange(16.0).reshape(8, 2),
  "moments": (jnp.ones((8, 2), jnp.bfloat16) / 3, jnp.int32(5)),
}


def test_a_state_is_restored_bit_by_bit_and_in_its_place(tmp_path):
  mesh = make_mesh(8)
  with jax.set_mesh(mesh):
    state = jax.jit(shard)(STATE)
  with LocalCheckpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(3, state, {"wall_seconds": 1.5})
  with LocalCheckpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.latest() == 3
    restored, meta = checkpoints.restore(3, state)
  assert meta == {"wall_seconds": 1.5}
  for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
    assert one.sharding == other.sharding
    assert one.dtype == other.dtype
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_last_two_are_kept(tmp_path):
  checkpoints = LocalCheckpoints(tmp_path)
  for step in (9, 10, 11):
    checkpoints.save(step, STATE, {})
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "10.npz",
    "11.npz",
  ]


def test_broken_and_foreign_checkpoints_are_refused(tmp_path):
  checkpoints = LocalCheckpoints(tmp_path)
  checkpoints.save(1, STATE, {})
  other = {**STATE, "pixels": jnp.zeros((4, 2))}
  with pytest.raises(DfktError, match=r"float32\[8, 2\] there, float32\[4"):
    checkpoints.restore(1, other)
  with pytest.raises(DfktError, match="'more'"):
    checkpoints.restore(1, {**STATE, "more": jnp.zeros(2)})
  path = tmp_path / "1.npz"
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(
    DfktError, match="remove it to resume from the one before"
  ):
    checkpoints.restore(1, STATE)
