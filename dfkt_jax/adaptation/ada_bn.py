"""AdaBN: BatchNorm's statistics of the target in place of the source's.

Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation",
2016. No gradient. One pass over the target (the last batch is filled up with
images of another), every BatchNorm running on the batch's own statistics; mean
and variance of its input over all batches become the running ones, in whatever
order the batches came:

  mean = E_b[mean_b],   variance = E_b[variance_b + mean_b^2] - mean^2
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network


class State(NamedTuple):
  source: Network
  batches: jax.Array  # f32[]
  means: dict  # summed over batches, in the structure of batch_stats
  squares: dict  # of the inputs, likewise


class Info(NamedTuple):
  drift: jax.Array  # see `drift`


@dataclasses.dataclass(frozen=True)
class AdaBN:
  """It has no hyper-parameters of its own."""

  course: ClassVar[Course] = Course(epochs=1, batch_size=256)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    require_batch_norm(source, "ada-bn")
    nothing = lambda name: _select(
      jax.tree.map(jnp.zeros_like, source.batch_stats), name
    )
    return State(source, jnp.float32(0.0), nothing("mean"), nothing("mean"))

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    seen = net.batch_statistics(state.source, batch.images)
    means, variances = _select(seen, "mean"), _select(seen, "var")
    squares = jax.tree.map(lambda m, v: v + m**2, means, variances)
    add = lambda sums, new: jax.tree.map(jnp.add, sums, new)
    state = State(
      state.source,
      state.batches + 1.0,
      add(state.means, means),
      add(state.squares, squares),
    )
    return state, Info(drift(state.source, self.network(state)))

  def network(self, state: State) -> Network:
    scale = 1.0 / jnp.maximum(state.batches, 1.0)
    flat = {}
    for path, total in state.means.items():
      mean = scale * total
      variance = scale * state.squares[path] - mean**2
      flat[*path, "mean"] = mean
      flat[*path, "var"] = jnp.maximum(variance, 0.0)
    stats = traverse_util.unflatten_dict(flat)
    # Before the first batch it is the source.
    stats = jax.tree.map(
      lambda new, old: jnp.where(state.batches > 0, new, old),
      stats,
      state.source.batch_stats,
    )
    variables = {**state.source.variables, "batch_stats": stats}
    return dataclasses.replace(state.source, variables=variables)


def drift(source: Network, adapted: Network) -> jax.Array:
  """How far BatchNorm's means have moved, in the source's deviations, f32[].

  The mean over channels, then over layers; 0 without BatchNorm, and where a
  method makes a network of another architecture.
  """
  old, new = source.batch_stats, adapted.batch_stats
  if source.module != adapted.module:
    return jnp.float32(0.0)
  means, deviations = _select(old, "mean"), _select(old, "var")
  layers = [
    (jnp.abs(moved - means[path]) / jnp.sqrt(deviations[path] + 1e-5)).mean()
    for path, moved in _select(new, "mean").items()
  ]
  return jnp.stack(layers).mean() if layers else jnp.float32(0.0)


def require_batch_norm(source: Network, method: str) -> None:
  """Raises UsageError where there is no BatchNorm to adapt."""
  if not source.batch_stats:
    raise UsageError(
      f"{method} adapts BatchNorm and {type(source.module).__name__} has none:"
      " use a source with BatchNorm, or another method such as shot"
    )


def _select(stats, name) -> dict[tuple[str, ...], Any]:
  """{path of a BatchNorm: its mean, or its variance}."""
  flat = traverse_util.flatten_dict(stats)
  return {path[:-1]: leaf for path, leaf in flat.items() if path[-1] == name}
