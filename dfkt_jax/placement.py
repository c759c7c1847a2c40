"""Where the arrays of networks and of states live on a mesh.

Along the mesh's axis "model" every large parameter is split, over its output
channels; so are the optimiser's moments, which have the shapes of what they
belong to. All other arrays of a state live where the program that makes them
puts them: split over "data" where it says so (`parallel.split`), else
everywhere.
"""

from collections.abc import Callable
import math
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax.network import Network
from dfkt_jax.parallel import MODEL

T = TypeVar("T")
LARGE = 2**14  # scalars from which on a parameter is worth splitting


def specification(
  shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """Of a parameter of that shape: split along its last axis, or not at all."""
  devices = mesh.shape.get(MODEL, 1)
  if devices == 1 or math.prod(shape) < LARGE or shape[-1] % devices:
    return PartitionSpec()
  return PartitionSpec(*[None] * (len(shape) - 1), MODEL)


def place(tree: T, mesh: Mesh) -> T:
  """Puts networks on the mesh; they are the same on every process.

  Without a model axis every array is then on every device.
  """

  def put(x):
    # A put may alias its input, which a later donation would then delete.
    host = np.array(x)
    sharding = NamedSharding(mesh, specification(host.shape, mesh))
    piece = lambda index: host[index]
    return jax.make_array_from_callback(host.shape, sharding, piece)

  return jax.tree.map(put, jax.device_get(tree))


def constrain(tree: T) -> T:
  """As `place`, inside jit, on the current mesh if there is one."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  put = lambda x: jax.lax.with_sharding_constraint(
    x, specification(x.shape, mesh)
  )
  return jax.tree.map(put, tree)


def outline(function: Callable[..., Any], *arguments: Any) -> Any:
  """What function(*arguments) is on the current mesh, without computing it.

  Arguments and answer are arrays or shapes; of the answer, shapes with dtypes
  and the shardings that the compiled function would give them.
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
  """function(*arguments), a state, as one program on the current mesh.

  Its shardings come from the shapes of `function`'s answer, before there is an
  array of it.
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
    NamedSharding(mesh, specification(leaf.shape, mesh))
    if leaf.shape in parameters
    else None
  )
  return jax.jit(function, out_shardings=jax.tree.map(choose, shapes))(
    *arguments
  )
