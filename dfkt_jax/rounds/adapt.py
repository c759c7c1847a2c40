"""The steps of an adaptation: batches of the target, a relabelling an epoch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.contracts import (
  Adapter,
  Batch,
  Context,
  Predictions,
  Relabels,
)
from dfkt_jax.devices.sharding import shard
from dfkt_jax.evaluation import diagnostics
from dfkt_jax.network import Network, placement
from dfkt_jax.rounds.returned import check_state, check_step
from dfkt_jax.rounds.target_predictions import PredictAll

# Streams of random keys; within one, a key is folded with the step it serves.
INIT, RELABEL, STEP = range(3)


class State(NamedTuple):
  """Everything that an adaptation changes."""

  method: Any
  decisions: jax.Array  # i32[rows], at the start of the epoch


class Programs(NamedTuple):
  """Compiled functions of one adapter; all take the source as an argument."""

  # (key, state, source, assets, predictions, index)
  relabel: Callable[..., Any]
  # (state, key, source, assets, images, rows, index)
  step: Callable[..., Any]
  network: Callable[[Any], Network]


def init(
  key: jax.Array,
  method: Adapter,
  recipe: Recipe,
  source: Network,
  predictions: Predictions,
  assets: Any = None,
) -> State:
  """Return the state before the first step; `predictions` are the source's."""

  def begin(key, source, predictions, assets):
    context = Context(
      teacher=source, predictions=predictions, recipe=recipe, assets=assets
    )
    return method.init(key, context)

  state = placement.create(
    begin, jax.random.fold_in(key, INIT), source, predictions, assets
  )
  decide = jax.jit(diagnostics.decide, static_argnums=1)
  return State(state, decide(predictions, source.spec.task))


def compile_programs(method: Adapter, recipe: Recipe) -> Programs:
  """Compile an adapter's functions; the state of a step is donated."""

  def relabel(key, state, source, assets, predictions, index):
    context = Context(
      teacher=source,
      recipe=recipe,
      assets=assets,
      predictions=predictions,
      progress=index / recipe.steps,
      step=index,
    )
    new = method.relabel(key, state, context)  # type: ignore
    return check_state(method, "relabel", state, new)

  def step(state, key, source, assets, images, rows, index):
    images = shard(images.astype("float32") / 255)
    context = Context(
      teacher=source,
      recipe=recipe,
      assets=assets,
      batch=Batch(images, rows=rows),
      progress=index / recipe.steps,
      step=index,
    )
    return check_step(method, state, method.step(key, state, context))

  return Programs(
    jax.jit(relabel),
    jax.jit(step, donate_argnums=0),
    jax.jit(method.network),
  )


class Predicted:
  """The adapted network's predictions for the target, made once a step."""

  def __init__(self, predict_all: PredictAll, network: Callable, first: Any):
    self._predict_all, self._network = predict_all, network
    self._latest = (0, first)

  def __call__(self, state: State, done: int) -> Predictions:
    """Return the predictions after `done` steps."""
    if self._latest[0] != done:
      network = self._network(state.method)
      self._latest = (done, self._predict_all(network))
    return self._latest[1]


def make_advance(
  method: Adapter,
  recipe: Recipe,
  programs: Programs,
  key: jax.Array,
  source: Network,
  assets: Any,
  epoch: int,
  predicted: Predicted,
  next_batch: Callable[[], tuple[jax.Array, jax.Array]],
) -> Callable[[State, int], tuple[State, dict[str, Any]]]:
  """Make advance(state, index) -> (state, infos), a step on the next batch.

  Args:
    epoch: steps from one relabelling to the next.
    next_batch: u8[batch, height, width, channels] images and i32[batch] rows.
  """
  decide = jax.jit(diagnostics.decide, static_argnums=1)

  def advance(state, index):
    if index and index % epoch == 0:
      predictions = predicted(state, index)
      if isinstance(method, Relabels):
        relabel_key = jax.random.fold_in(
          jax.random.fold_in(key, RELABEL), index
        )
        state = state._replace(
          method=programs.relabel(
            relabel_key, state.method, source, assets, predictions, index
          )
        )
      decisions = decide(predictions, source.spec.task)
      state = state._replace(decisions=decisions)
    images, rows = next_batch()
    step_key = jax.random.fold_in(jax.random.fold_in(key, STEP), index)
    method_state, info = programs.step(
      state.method, step_key, source, assets, images, rows, index
    )
    info = jax.tree.map(lambda x: x[None], info)
    return state._replace(method=method_state), {"adaptation": info}

  return advance
