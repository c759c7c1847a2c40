"""AdaBN: BatchNorm statistics of the target replace those of the source.

  mean = E_b[mean_b],   variance = E_b[variance_b + mean_b^2] - mean^2

Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation",
2016. There is no gradient. The target is seen once, in batches b, with every
BatchNorm on the batch's own statistics. The mean and the variance of its input
over all batches become the running ones; they do not depend on the order of the
batches. The last batch is filled up with images of another one.
"""

import dataclasses
from typing import ClassVar, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.contracts import Context
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network
from dfkt_jax.network.drift import batch_norm_drift, select_statistics


class State(NamedTuple):
  """Sums over batches, and the network that they result in.

  `AdaBN.network` has the state alone and no context, so the state also holds a
  copy of the source's parameters.
  """

  network: Network
  batches: jax.Array  # f32[]
  means: dict  # {path of a BatchNorm: f32[channels]}
  squares: dict  # of the inputs, in the same form


class Info(NamedTuple):
  """The drift of the running means, see `network.drift`."""

  drift: jax.Array


@dataclasses.dataclass(frozen=True)
class AdaBN:
  """A method without hyper-parameters of its own."""

  recipe: ClassVar[Recipe] = Recipe(epochs=1, batch_size=256)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source and empty sums.

    Raises:
      UsageError: the source has no BatchNorm.
    """
    source = context.teacher
    require_batch_norm(source, "ada-bn")
    zeros = lambda: select_statistics(
      jax.tree.map(jnp.zeros_like, source.batch_stats), "mean"
    )
    return State(source, jnp.float32(0.0), zeros(), zeros())

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Add a batch to the sums."""
    moments = net.batch_statistics(context.teacher, context.batch.images)
    means = select_statistics(moments, "mean")
    variances = select_statistics(moments, "var")
    squares = jax.tree.map(lambda m, v: v + m**2, means, variances)
    add = lambda sums, new: jax.tree.map(jnp.add, sums, new)
    batches = state.batches + 1.0
    means, squares = add(state.means, means), add(state.squares, squares)
    network = with_statistics(state.network, batches, means, squares)
    info = Info(batch_norm_drift(context.teacher, network))
    return State(network, batches, means, squares), info

  def network(self, state: State) -> Network:
    """Return the source with the statistics of the batches so far."""
    return state.network


def with_statistics(
  network: Network, batches: jax.Array, means: dict, squares: dict
) -> Network:
  """Return the network with running statistics from sums over batches."""
  scale = 1.0 / batches
  flat = {}
  for path, total in means.items():
    mean = scale * total
    variance = scale * squares[path] - mean**2
    flat[*path, "mean"] = mean
    flat[*path, "var"] = jnp.maximum(variance, 0.0)
  stats = traverse_util.unflatten_dict(flat)
  variables = {**network.variables, "batch_stats": stats}
  return dataclasses.replace(network, variables=variables)


def require_batch_norm(source: Network, method: str) -> None:
  """Check that there is BatchNorm to adapt.

  Raises:
    UsageError: the source has no BatchNorm.
  """
  if not source.batch_stats:
    raise UsageError(
      f"{method} adapts BatchNorm and {type(source.module).__name__} has none:"
      " use a source with BatchNorm, or another method such as shot"
    )
