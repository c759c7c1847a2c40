"""Devices: one mesh, and where arrays live on it.

A mesh has one axis, "data"; batches and the pool are split over it, all else is
on every device. BatchNorm statistics come out global over the mesh, which is
what the single-GPU papers computed. Axes are Auto: `jax.make_mesh` defaults to
Explicit ones, under which gathers from a sharded bank do not type-check.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax.errors import UsageError

DATA = "data"


def make_mesh(devices: int | None = None) -> Mesh:
  """A mesh over the first `devices` devices, or over all of them.

  Raises:
    UsageError: there are fewer devices than that.
  """
  available = jax.devices()
  count = len(available) if devices is None else devices
  if not 1 <= count <= len(available):
    raise UsageError(
      f"--devices {count}: this machine has {len(available)}"
      f" {available[0].platform} device(s); give 1 to {len(available)}"
    )
  return jax.make_mesh(
    (count,), (DATA,), axis_types=(AxisType.Auto,), devices=available[:count]
  )


def split(tree: Any) -> Any:
  """Constrains the leading axis of every array to be split over the devices.

  Arrays drawn inside jit are otherwise computed on every device in full. What
  does not divide evenly, and everything outside a mesh, is left alone.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or DATA not in mesh.axis_names:
    return tree
  count = mesh.shape[DATA]

  def constrain(x):
    if x.ndim == 0 or x.shape[0] % count:
      return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA))

  return jax.tree.map(constrain, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts every array of the tree on every device of the mesh."""
  sharding = NamedSharding(mesh, PartitionSpec())
  # A put may alias its input (in jax 0.10 even when told not to), which a later
  # donation would then delete: only a copy on the host is safe.
  return jax.tree.map(
    lambda x: jax.device_put(np.array(x), sharding), jax.device_get(tree)
  )


def put_batch(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
  """Puts host arrays on the mesh, split along `axis` if that is even."""

  def put(x):
    even = x.ndim > axis and x.shape[axis] % mesh.size == 0
    spec = PartitionSpec(*[None] * axis, DATA) if even else PartitionSpec()
    return jax.device_put(x, NamedSharding(mesh, spec))

  return jax.tree.map(put, tree)
