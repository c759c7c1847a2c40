"""The shardings of networks and of states on a mesh.

Every large parameter is sharded along the mesh's axis "model", over its output
channels, and so are the optimizer's moments, which have the shapes of their
parameters. All other arrays of a state have the sharding that the program which
makes them gives them: over "data" where it says so (`devices.sharding.shard`),
else replicated.
"""

from collections.abc import Callable
import math
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax.devices.mesh import MODEL
from dfkt_jax.network.network import Network

T = TypeVar("T")
LARGE = 2**14  # scalars; a smaller parameter is not worth sharding


def partition_spec(
  shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """Return a parameter's partition: its last axis over "model", or nothing."""
  devices = mesh.shape.get(MODEL, 1)
  if devices == 1 or math.prod(shape) < LARGE or shape[-1] % devices:
    return PartitionSpec()
  return PartitionSpec(*[None] * (len(shape) - 1), MODEL)


def put(tree: T, mesh: Mesh) -> T:
  """Put networks, equal on every process, on the mesh.

  Without a model axis every array is replicated.
  """

  def put_array(x):
    # A put may alias its input, which a later donation would then delete.
    host = np.array(x)
    sharding = NamedSharding(mesh, partition_spec(host.shape, mesh))
    piece = lambda index: host[index]
    return jax.make_array_from_callback(host.shape, sharding, piece)

  return jax.tree.map(put_array, jax.device_get(tree))


def constrain(tree: T) -> T:
  """Constrain networks to the shardings of `put`, inside jit.

  Without a current mesh nothing changes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  constrain_array = lambda x: jax.lax.with_sharding_constraint(
    x, partition_spec(x.shape, mesh)
  )
  return jax.tree.map(constrain_array, tree)


def abstract(function: Callable[..., Any], *arguments: Any) -> Any:
  """Return the shapes of function(*arguments) without computing it.

  Arguments are arrays or shapes. The shapes returned have dtypes, and the
  shardings that the compiled function would give on the current mesh.
  """
  program = jax.jit(function)
  shape = lambda x, sharding: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=sharding
  )
  return jax.tree.map(
    shape,
    jax.eval_shape(program, *arguments),
    program.lower(*arguments).compile().output_shardings,
  )


def create(function: Callable[..., Any], *arguments: Any) -> Any:
  """Return function(*arguments), a state, as one program on the mesh.

  The shardings come from the shapes of the state, before any array of it is
  allocated.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty or mesh.shape.get(MODEL, 1) == 1:
    return jax.jit(function)(*arguments)
  shapes = jax.eval_shape(function, *arguments)
  is_network = lambda node: isinstance(node, Network)
  networks = [
    node
    for node in jax.tree.leaves(shapes, is_leaf=is_network)
    if is_network(node)
  ]
  parameters = {leaf.shape for leaf in jax.tree.leaves(networks)}
  # None leaves the choice to the compiler.
  choose = lambda leaf: (
    NamedSharding(mesh, partition_spec(leaf.shape, mesh))
    if leaf.shape in parameters
    else None
  )
  return jax.jit(function, out_shardings=jax.tree.map(choose, shapes))(
    *arguments
  )
