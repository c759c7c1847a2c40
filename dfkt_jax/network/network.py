"""A trained network as one pytree: variables are leaves, all else is static.

All functions here take images as f32[batch, height, width, channels] in [0, 1]
and normalize them as the network's spec requires. A network travels through
`jit` as an argument, so that its weights are never compiled into a program.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, Literal

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dfkt_jax.devices.mesh import DATA
from dfkt_jax.devices.sharding import data_devices
from dfkt_jax.errors import UsageError
from dfkt_jax.network.spec import InputSpec

PyTree = Any
# The batch that BatchNorm normalizes by: the whole one, or each device's share.
Statistics = Literal["global", "per_device"]


@struct.dataclass
class Network:
  """A linen module with its variables and its spec.

  `variables` are {"params": ...} and, with BatchNorm, {"batch_stats": ...}.
  """

  variables: dict[str, PyTree]
  module: nn.Module = struct.field(pytree_node=False)
  spec: InputSpec = struct.field(pytree_node=False)

  @property
  def batch_stats(self) -> dict:
    """Return running mean and variance of every BatchNorm, or {}."""
    return self.variables.get("batch_stats", {})

  @property
  def params(self) -> dict:
    """Return the trainable parameters."""
    return self.variables["params"]

  def with_params(self, params: PyTree) -> "Network":
    """Return the same network with other parameters."""
    variables = {**self.variables, "params": params}
    return dataclasses.replace(self, variables=variables)


def init(key: jax.Array, module: nn.Module, spec: InputSpec) -> Network:
  """Return a network with freshly drawn parameters."""
  x = jnp.zeros((1, *spec.shape), jnp.float32)
  variables = module.init(key, x, train=False)
  kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
  return Network(kept, module, spec)


def logits(network: Network, images: jax.Array) -> jax.Array:
  """Return f32[batch, classes], with BatchNorm on its running statistics."""
  x = network.spec.normalize(images)
  return network.module.apply(network.variables, x, train=False)  # type: ignore


def features(
  network: Network, images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Return the logits, and the intermediates that the module names.

  Every architecture of ours names "penultimate", f32[batch, width], the input
  of its last linear layer. An ensemble does not: see `require_feature`.
  """
  out, taps = _apply(network, images, "features")
  return out, taps


def require_feature(
  taps: dict[str, jax.Array], name: str, network: Network
) -> jax.Array:
  """Return an intermediate that `features` found, by its name.

  Raises:
    UsageError: the network's module does not name it.
  """
  if name not in taps:
    named = f"names only {', '.join(taps)}" if taps else "names none"
    raise UsageError(
      f"the features {name!r} are needed and a network of the architecture"
      f" {type(network.module).__name__} {named}: give a network of an"
      " architecture in 'dfkt list archs', or use another method"
    )
  return taps[name]


def statistics(network: Network, images: jax.Array) -> tuple[jax.Array, dict]:
  """Return the logits, and mean and biased variance of BatchNorm inputs.

  BatchNorm uses its running statistics, as in `logits`. The moments have the
  tree structure of `network.batch_stats`, every leaf f32[channels].
  """
  out, taps = _apply(network, images, "bn_inputs")
  return out, taps


def train_logits(
  network: Network,
  images: jax.Array,
  key: jax.Array | None,
  statistics: Statistics = "global",
) -> tuple[jax.Array, dict]:
  """Return logits with BatchNorm on batch statistics, and the new variables.

  The variables are the network's own with `batch_stats` moved towards those of
  the batch. `key` is for dropout, where the module has any; None drops nothing.

  `statistics` are "global", those of the whole batch, or "per_device", for
  every device of the mesh those of its own share of the batch. The latter need
  no communication but one mean of all running statistics at the end, and their
  results depend on the number of devices.

  Raises:
    UsageError: `statistics` are per device and the devices do not divide the
      batch evenly.
  """
  out, _, variables = train_features(network, images, key, statistics)
  return out, variables


def train_features(
  network: Network,
  images: jax.Array,
  key: jax.Array | None,
  statistics: Statistics = "global",
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
  """Return the logits, named intermediates and variables of `train_logits`."""
  collections = ["batch_stats", "features"]
  if statistics == "per_device" and data_devices() > 1:
    out, updated = _train_per_device(network, images, key, collections)
  else:
    out, updated = _train(network, images, key, collections)
  taps = updated.pop("features", {})
  return out, taps, {**network.variables, **updated}


def batch_statistics(network: Network, images: jax.Array) -> dict:
  """Return BatchNorm input moments with BatchNorm on batch statistics.

  They have the structure of `statistics`; logits are not returned.
  """
  _, updated = _train(network, images, None, ["batch_stats", "bn_inputs"])
  return updated.get("bn_inputs", {})


def _train_per_device(
  network, images, key, collections
) -> tuple[jax.Array, dict]:
  """Return `_train` of every device on its own share of the batch."""
  devices = data_devices()
  if len(images) % devices:
    raise UsageError(
      f"--statistics per_device shards a batch of {len(images)} images over"
      f" {devices} devices: give a --batch-size that is a multiple of {devices}"
    )

  def apply(variables, images, key):
    if key is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
    share = dataclasses.replace(network, variables=variables)
    out, updated = _train(share, images, key, collections)
    moved = jax.lax.pmean(updated.pop("batch_stats", {}), DATA)
    return out, updated, moved

  replicated, sharded = PartitionSpec(), PartitionSpec(DATA)
  out, updated, moved = jax.shard_map(
    apply,
    in_specs=(replicated, sharded, replicated),
    out_specs=(sharded, sharded, replicated),
    axis_names={DATA},
  )(network.variables, images, key)
  return out, {**updated, **({"batch_stats": moved} if moved else {})}


def _train(network, images, key, collections) -> tuple[jax.Array, dict]:
  x = network.spec.normalize(images)
  apply = lambda rngs: network.module.apply(
    network.variables, x, train=True, mutable=collections, rngs=rngs
  )
  if key is not None:
    return apply({"dropout": key})  # type: ignore

  def keep_all(call, args, kwargs, context):
    dropout = isinstance(context.module, nn.Dropout)
    return args[0] if dropout else call(*args, **kwargs)

  with nn.intercept_methods(keep_all):
    return apply({})  # type: ignore


def batch_norm_params(network: Network) -> PyTree:
  """Return a tree like `params` of bool: whether a BatchNorm owns it."""
  norms = set(batch_norm_paths(network))
  own = lambda path, _: tuple(key.key for key in path[:-1]) in norms
  return jax.tree_util.tree_map_with_path(own, network.params)


def batch_norm_paths(network: Network) -> list[tuple[str, ...]]:
  """Return paths into `batch_stats` in the order of the forward pass.

  The order of a pytree is alphabetical and does not show which BatchNorm comes
  first.
  """

  def path_of(module, output):
    return module.path if isinstance(module, nn.BatchNorm) else None

  return record_calls(network, path_of)


def record_calls(
  network: Network, record: Callable[[nn.Module, Any], Any]
) -> list:
  """Return what `record` makes of every module's call, in order, each once.

  The network is evaluated abstractly: no number is computed.

  Args:
    record: takes a module and its output, of which only shapes are known, and
      returns a hashable value, or None for a module that does not count.
  """
  found = []

  def intercept(call, args, kwargs, context):
    output = call(*args, **kwargs)
    if context.method_name == "__call__":
      found.append(record(context.module, output))
    return output

  x = jax.ShapeDtypeStruct((2, *network.spec.shape), jnp.float32)
  with nn.intercept_methods(intercept):
    jax.eval_shape(
      lambda v, x: network.module.apply(v, x, train=False),
      network.variables,
      x,
    )
  # Our BatchNorm calls its parent class's `__call__`: it is recorded twice.
  return [value for value in dict.fromkeys(found) if value is not None]


def num_parameters(network: Network) -> int:
  """Return the number of trainable scalars, without running statistics."""
  leaves = jax.tree.leaves(network.params)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _apply(network, images, collection) -> tuple[jax.Array, dict]:
  x = network.spec.normalize(images)
  out, taps = network.module.apply(
    network.variables, x, train=False, mutable=[collection]
  )
  return out, taps.get(collection, {})  # type: ignore
