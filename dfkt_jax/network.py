"""A trained network as one pytree: variables are leaves, all else is static.

At every function of this module images are f32[batch, height, width, channels]
in [0, 1]; the network's own normalisation happens inside. A network travels
through `jit` as an argument, so its weights are never compiled into a program.
"""

import dataclasses
import math
from typing import Any, Literal

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dfkt_jax import parallel
from dfkt_jax.errors import UsageError
from dfkt_jax.models.norm import BatchNorm

PyTree = Any
# Whose batch BatchNorm takes its statistics of: everybody's, or a device's own.
Statistics = Literal["global", "per_device"]


@dataclasses.dataclass(frozen=True)
class InputSpec:
  """What a network takes, and how many classes it tells apart (hashable).

  `mean` and `std` are per channel, of images in [0, 1]. `class_names` is empty
  or holds `classes` names in the order of the logits. `crop` is the share of a
  photograph's side, in the middle, that the network's authors evaluate it on;
  it is for files of any size, and images of the network's own are shown whole.
  """

  height: int
  width: int
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  classes: int
  class_names: tuple[str, ...] = ()
  crop: float = 1.0

  def __post_init__(self):
    for name in ("mean", "std"):
      values = getattr(self, name)
      if len(values) != self.channels:
        raise ValueError(
          f"InputSpec.{name} has {len(values)} values for"
          f" {self.channels} channels"
        )
    if not 0.0 < self.crop <= 1.0:
      raise ValueError(f"InputSpec.crop is {self.crop}, not in (0, 1]")
    if self.class_names and len(self.class_names) != self.classes:
      raise ValueError(
        f"InputSpec has {len(self.class_names)} class_names for"
        f" {self.classes} classes"
      )

  @property
  def shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return (self.height, self.width, self.channels)

  def normalise(self, images: jax.Array) -> jax.Array:
    """[0, 1] to what the network was trained on."""
    mean, std = self._moments(images.ndim)
    return (images - mean) / std

  def denormalise(self, x: jax.Array) -> jax.Array:
    """The inverse of `normalise`."""
    mean, std = self._moments(x.ndim)
    return x * std + mean

  def _moments(self, ndim):
    shape = (1,) * (ndim - 1) + (self.channels,)
    return (
      jnp.asarray(self.mean, jnp.float32).reshape(shape),
      jnp.asarray(self.std, jnp.float32).reshape(shape),
    )


@struct.dataclass
class Network:
  """`variables`: {"params": ...} and, with BatchNorm, {"batch_stats": ...}."""

  variables: dict[str, PyTree]
  module: nn.Module = struct.field(pytree_node=False)
  spec: InputSpec = struct.field(pytree_node=False)

  @property
  def batch_stats(self) -> dict:
    """Running mean and variance of every BatchNorm; {} without BatchNorm."""
    return self.variables.get("batch_stats", {})

  @property
  def params(self) -> dict:
    """What is trained."""
    return self.variables["params"]

  def with_params(self, params: PyTree) -> "Network":
    """The same network with other parameters."""
    variables = {**self.variables, "params": params}
    return dataclasses.replace(self, variables=variables)


def init(key: jax.Array, module: nn.Module, spec: InputSpec) -> Network:
  """A network with freshly drawn parameters."""
  x = jnp.zeros((1, *spec.shape), jnp.float32)
  variables = module.init(key, x, train=False)
  kept = {k: v for k, v in variables.items() if k in ("params", "batch_stats")}
  return Network(kept, module, spec)


def logits(network: Network, images: jax.Array) -> jax.Array:
  """f32[batch, classes], BatchNorm on its running statistics."""
  x = network.spec.normalise(images)
  return network.module.apply(network.variables, x, train=False)  # type: ignore


def features(
  network: Network, images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Logits, and the intermediates the module names.

  Every module of ours names "penultimate", f32[batch, width]: what its last
  linear layer is given.
  """
  out, taps = _apply(network, images, "features")
  return out, taps


def statistics(network: Network, images: jax.Array) -> tuple[jax.Array, dict]:
  """Logits, and mean and (biased) variance of every BatchNorm's input.

  BatchNorm runs on its running statistics, as in `logits`. The second has the
  tree structure of `network.batch_stats`, all f32[channels].
  """
  out, taps = _apply(network, images, "bn_inputs")
  return out, taps


def train_logits(
  network: Network,
  images: jax.Array,
  key: jax.Array | None,
  statistics: Statistics = "global",
) -> tuple[jax.Array, dict]:
  """Logits with BatchNorm on batch statistics, and the variables to go on with.

  The variables are the network's own with `batch_stats` moved towards the
  batch. `key` feeds dropout where the module has any; None: nothing is dropped.

  `statistics` are those of the whole batch, or for every device of the mesh
  those of its own share of it, which takes no communication but one mean of
  all the running statistics at the end, and depends on the number of devices.

  Raises:
    UsageError: they are per device and the batch cannot be split evenly.
  """
  out, _, variables = train_features(network, images, key, statistics)
  return out, variables


def train_features(
  network: Network,
  images: jax.Array,
  key: jax.Array | None,
  statistics: Statistics = "global",
) -> tuple[jax.Array, dict[str, jax.Array], dict]:
  """`train_logits` with the named intermediates between its two answers."""
  collections = ["batch_stats", "features"]
  if statistics == "per_device" and parallel.data_devices() > 1:
    out, updated = _train_apart(network, images, key, collections)
  else:
    out, updated = _train(network, images, key, collections)
  taps = updated.pop("features", {})
  return out, taps, {**network.variables, **updated}


def batch_statistics(network: Network, images: jax.Array) -> dict:
  """`statistics` with every BatchNorm running on the batch's own; no logits."""
  _, updated = _train(network, images, None, ["batch_stats", "bn_inputs"])
  return updated.get("bn_inputs", {})


def _train_apart(network, images, key, collections) -> tuple[jax.Array, dict]:
  """`_train` on every device for its own share of the batch."""
  devices = parallel.data_devices()
  if len(images) % devices:
    raise UsageError(
      f"--statistics per_device splits a batch of {len(images)} images over"
      f" {devices} devices: give a --batch-size that {devices} divides"
    )

  def apply(variables, images, key):
    if key is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(parallel.DATA))
    share = dataclasses.replace(network, variables=variables)
    out, updated = _train(share, images, key, collections)
    moved = jax.lax.pmean(updated.pop("batch_stats", {}), parallel.DATA)
    return out, updated, moved

  whole, split = PartitionSpec(), PartitionSpec(parallel.DATA)
  out, updated, moved = jax.shard_map(
    apply,
    in_specs=(whole, split, whole),
    out_specs=(split, split, whole),
    axis_names={parallel.DATA},
  )(network.variables, images, key)
  return out, {**updated, **({"batch_stats": moved} if moved else {})}


def _train(network, images, key, collections) -> tuple[jax.Array, dict]:
  x = network.spec.normalise(images)
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
  """Whether a parameter is a BatchNorm's, bool in the structure of `params`."""
  norms = set(batch_norm_paths(network))
  own = lambda path, _: tuple(key.key for key in path[:-1]) in norms
  return jax.tree_util.tree_map_with_path(own, network.params)


def batch_norm_paths(network: Network) -> list[tuple[str, ...]]:
  """Paths into `batch_stats` in the order in which the forward pass uses them.

  A pytree's own order is alphabetical, so the first BatchNorm has to be asked
  for. Only names are recorded, during an abstract evaluation.
  """
  paths = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, BatchNorm):
      paths.append(context.module.path)
    return call(*args, **kwargs)

  x = jax.ShapeDtypeStruct((2, *network.spec.shape), jnp.float32)
  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda v, x: network.module.apply(v, x, train=False),
      network.variables,
      x,
    )
  return list(dict.fromkeys(paths))


def num_parameters(network: Network) -> int:
  """Trainable scalars; running statistics are not counted."""
  leaves = jax.tree.leaves(network.params)
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _apply(network, images, collection) -> tuple[jax.Array, dict]:
  x = network.spec.normalise(images)
  out, taps = network.module.apply(
    network.variables, x, train=False, mutable=[collection]
  )
  return out, taps.get(collection, {})  # type: ignore
