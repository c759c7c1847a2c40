"""Sharding constraints inside jit, on the current mesh."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from dfkt_jax.devices.mesh import DATA


def platform() -> str:
  """Return cpu, gpu or tpu: the current mesh's platform, else JAX's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def data_devices() -> int:
  """Return the number of devices that share a batch; 1 outside a mesh."""
  # `pmap` has a mesh of its own.
  return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def shard(tree: Any) -> Any:
  """Constrain every array to be sharded over "data" along its first axis.

  Without it every device would compute all of an array that is drawn inside
  jit. An array whose first axis the devices do not divide stays as it is, and
  so does every array outside a mesh.
  """
  if DATA not in jax.sharding.get_abstract_mesh().axis_names:
    return tree
  count = data_devices()

  def constrain(x):
    if x.ndim == 0 or x.shape[0] % count:
      return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA))

  return jax.tree.map(constrain, tree)


def replicate(x: jax.Array) -> jax.Array:
  """Constrain an array to be replicated on the current mesh, if any."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())
