"""The rounds of a distillation: a source of images and a learner alternate.

synthesizer         some steps of synthesis, then the student learns from
                    fresh samples; the synthesizer goes on from there
with replay buffer  the steps of synthesis make one batch, which is stored;
                    the student learns from the buffer, and the synthesizer
                    begins its next batch
offline             the buffer is filled first, then the student learns
                    without further synthesis
pool, stored set    batches come from the host, several a round, as 8-bit
                    images; the student learns from each once
pool, synthesizer   a source that does both (MosaicKD): its steps see batches
                    of the pool, and the student as many fresh samples as
                    images of the pool
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.contracts import (
  Batch,
  Context,
  HasBatchSize,
  Learner,
  Restarts,
  Selector,
  Synthesizer,
  step_functions,
  unlabelled,
)
from dfkt_jax.devices.loops import Loops, select
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.memory import replay_buffer
from dfkt_jax.memory.replay_buffer import ReplayBuffer
from dfkt_jax.network import Network
from dfkt_jax.rounds.returned import check_sample, check_state, check_step

# Streams of random keys; within one, a key is folded with the step it serves.
INIT, SYNTHESIS, HARVEST, RESTART, DRAW, STUDENT, PREVIEW = range(7)

Source = Any  # a Synthesizer, a Selector, both, or Offline
Round = Callable[..., tuple["State", dict[str, Any]]]


class State(NamedTuple):
  """Everything that a distillation changes."""

  synthesis: Any  # the synthesizer's state; None without one
  learner: Any
  memory: ReplayBuffer | None


def stream_key(key: jax.Array, stream: int, step: Any) -> jax.Array:
  """The key of one step of one stream: a function of (seed, step) alone."""
  return jax.random.fold_in(jax.random.fold_in(key, stream), step)


def has_batches(source: Source) -> bool:
  """Return whether batches come from the host, of a pool or a stored set."""
  return isinstance(source, Selector | Offline)


def images_per_step(source: Source, recipe: Recipe) -> int:
  """The number of images that one step of synthesis works on."""
  if isinstance(source, HasBatchSize):
    return source.synthesis_batch_size
  return recipe.batch_size


def warmup_rounds(source: Source, recipe: Recipe) -> int:
  """The number of rounds before the student begins."""
  if not recipe.offline:
    return recipe.warmup_rounds
  return -(-recipe.memory_size // images_per_step(source, recipe))


def learning_rounds(recipe: Recipe) -> int:
  """The number of rounds in which the student learns."""
  return -(-recipe.steps // recipe.student_steps)


def all_rounds(source: Source, recipe: Recipe) -> int:
  """The number of rounds, warm-up included."""
  return warmup_rounds(source, recipe) + learning_rounds(recipe)


def synthesis_rounds(source: Source, recipe: Recipe) -> int:
  """The number of rounds with steps of synthesis."""
  if not isinstance(source, Synthesizer):
    return 0
  if recipe.offline:
    return warmup_rounds(source, recipe)
  return all_rounds(source, recipe)


def batches_per_round(source: Source, recipe: Recipe) -> int:
  """The number of batches that a round takes from the host.

  The last ones are for the steps of synthesis, if the source has any.
  """
  if not has_batches(source):
    return 0
  adversary = isinstance(source, Synthesizer)
  return recipe.student_steps + adversary * recipe.synthesis_steps


def init(
  key: jax.Array,
  source: Source,
  learner: Learner,
  recipe: Recipe,
  teacher: Network,
  student: Network,
  assets: Any = None,
) -> State:
  """The state before the first round."""
  context = Context(
    teacher=teacher, student=student, recipe=recipe, assets=assets
  )
  synthesis, memory = None, None
  if isinstance(source, Synthesizer):
    synthesis = source.init(stream_key(key, INIT, 0), context)
  if recipe.memory_size:
    sample = jax.eval_shape(
      lambda key, state: check_sample(source, source.sample(key, state, 1)),
      key,
      synthesis,
    )
    soft = 0 if sample.soft_labels is None else sample.soft_labels.shape[1]
    made = images_per_step(source, recipe)
    memory = replay_buffer.init(
      recipe.memory_size, teacher.spec.shape, made, soft
    )
  # A learner drew from stream 0 in version 0.1, where it had no synthesizer.
  learner_stream = 2 if isinstance(source, Synthesizer) else 0
  learner_key = stream_key(key, INIT, learner_stream)
  return State(synthesis, learner.init(learner_key, student, context), memory)


def make_round(
  source: Source,
  learner: Learner,
  recipe: Recipe,
  loops: Loops,
  learn: bool = True,
  synthesize: bool = True,
) -> Round:
  """Make round(state, index, key, teacher, assets, batches) -> (state, infos).

  Args:
    learn: False in warm-up; `infos` then lacks "distillation".
    synthesize: False once an offline buffer is full; `infos` then lacks
      "synthesis", as it does without a synthesizer.

  Returns:
    A function that donates `state`. `index` counts rounds from 0. `assets` is
    what the source and the learner prepared, or None. `batches` is a Batch of
    u8[batches_per_round, batch, height, width, channels] images, or None.
    `infos` holds the Info tuples, with every field f32[steps].
  """
  synthesizes = isinstance(source, Synthesizer) and synthesize
  synthesis_total = (
    synthesis_rounds(source, recipe) * recipe.synthesis_steps or 1
  )
  warmup = warmup_rounds(source, recipe)

  def make_context(teacher, assets, state, **fields):
    return Context(
      teacher=teacher,
      learner=state,
      student=learner.student(state),
      recipe=recipe,
      assets=assets,
      **fields,
    )

  def synthesis_step(
    step_of, state, step, key, teacher, assets, learner_state, batches, first
  ):
    batch = None
    if batches is not None:
      place = recipe.student_steps + step - first
      batch = _batch(batches, place)
    context = make_context(
      teacher,
      assets,
      learner_state,
      batch=batch,
      progress=step / synthesis_total,
      step=step,
    )
    returned = step_of(stream_key(key, SYNTHESIS, step), state, context)
    return check_step(source, state, returned)

  def student_step(state, step, key, teacher, assets, batch):
    context = make_context(
      teacher,
      assets,
      state,
      batch=batch,
      progress=step / recipe.steps,
      step=step,
    )
    return check_step(learner, state, learner.step(key, state, context))

  def learn_fresh(state, step, key, teacher, assets, synthesis):
    draw_key = stream_key(key, DRAW, step)
    batch = source.sample(draw_key, synthesis, recipe.batch_size)
    check_sample(source, batch)
    key = stream_key(key, STUDENT, step)
    return student_step(state, step, key, teacher, assets, batch)

  def learn_stored(state, step, key, teacher, assets, memory):
    draw_key = stream_key(key, DRAW, step)
    batch = replay_buffer.draw(draw_key, memory, recipe.batch_size)
    key = stream_key(key, STUDENT, step)
    return student_step(state, step, key, teacher, assets, batch)

  def learn_batch(state, step, key, teacher, assets, synthesis, batches, first):
    batch = _batch(batches, step - first)
    key = stream_key(key, STUDENT, step)
    if isinstance(source, Synthesizer):
      draw_key, key = jax.random.split(key)
      fresh = source.sample(draw_key, synthesis, len(batch.images))
      check_sample(source, fresh)
      both = [fresh.images, batch.images]
      batch = unlabelled(jnp.concatenate(both))
    new, info = student_step(state, step, key, teacher, assets, batch)
    if isinstance(source, Offline):
      # The last round of a stored set may go beyond the last step.
      new = select(step < recipe.steps, new, state)
    return new, info

  def harvest(memory, synthesis, index, key):
    count = images_per_step(source, recipe)
    batch = source.sample(stream_key(key, HARVEST, index), synthesis, count)
    return replay_buffer.push(memory, check_sample(source, batch))

  def restart(synthesis, index, key, teacher, assets, learner_state):
    key = stream_key(key, RESTART, index)
    step = (index + 1) * recipe.synthesis_steps
    context = make_context(
      teacher,
      assets,
      learner_state,
      progress=step / synthesis_total,
      step=step,
    )
    if isinstance(source, Restarts):
      new = source.restart(key, synthesis, context)
      return check_state(source, "restart", synthesis, new)
    return source.init(key, context)

  if synthesizes:
    optimize = loops.chain(
      [
        (partial(synthesis_step, step_of), steps)
        for step_of, steps in step_functions(source, recipe.synthesis_steps)
      ]
    )
  if has_batches(source):
    learn_loop = loops.repeat(learn_batch, recipe.student_steps)
  else:
    student_loop = learn_stored if recipe.memory_size else learn_fresh
    learn_loop = loops.repeat(student_loop, recipe.student_steps)
  harvest = loops.jit_piece(harvest, donate=0)
  restart = loops.jit_piece(restart)

  def distillation_round(state, index, key, teacher, assets, batches):
    synthesis, learner_state, memory = state
    infos = {}
    if synthesizes:
      first = index * recipe.synthesis_steps
      synthesis, infos["synthesis"] = optimize(
        synthesis, first, key, teacher, assets, learner_state, batches, first
      )
    if synthesizes and recipe.memory_size:
      memory = harvest(memory, synthesis, index, key)
      synthesis = restart(synthesis, index, key, teacher, assets, learner_state)
    if learn:
      first = (index - warmup) * recipe.student_steps
      inputs = (memory if recipe.memory_size else synthesis,)
      if has_batches(source):
        inputs = (synthesis, batches, first)
      learner_state, infos["distillation"] = learn_loop(
        learner_state, first, key, teacher, assets, *inputs
      )
    return State(synthesis, learner_state, memory), infos

  return loops.jit_round(distillation_round)


def _batch(batches: Batch, place: Any) -> Batch:
  """One of several batches of 8-bit images, as f32 in [0, 1]."""
  batch = jax.tree.map(lambda x: x[place], batches)
  images = shard(batch.images).astype(jnp.float32) / 255
  if batch.labels is None:
    return unlabelled(shard(images))
  return shard(batch._replace(images=images))


def preview(key: jax.Array, source: Source, state: State, count: int) -> Batch:
  """`count` images such as the student learns from now."""
  if state.memory is not None:
    count = min(count, state.memory.capacity)
    return replay_buffer.latest(state.memory, count)
  return source.sample(stream_key(key, PREVIEW, 0), state.synthesis, count)
