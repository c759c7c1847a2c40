"""The programs of an experiment, with shapes instead of arrays."""

from collections.abc import Callable, Iterator
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax import models, teachers
from dfkt_jax.bench.workloads import Piece, piece
from dfkt_jax.commands import distill, synthesize
from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.contracts import (
  Batch,
  Context,
  Prepares,
  Selector,
  step_functions,
)
from dfkt_jax.devices.loops import Loops
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.errors import UsageError
from dfkt_jax.memory import replay_buffer
from dfkt_jax.network import Network, placement
from dfkt_jax.rounds import distil


def prepare(config: Any) -> Callable[[], Iterator[Piece]]:
  """Read an experiment's networks, and return what makes its pieces.

  The pieces are for the current mesh, whose devices need not exist. A Distill
  has the steps that its round consists of, and then the round as the one
  program that it is on an accelerator; with a stored transfer set it has the
  student's step. A Synthesize has a step of each stage.

  Raises:
    UsageError: the experiment is of another kind.
    DfktError: its teacher cannot be read.
  """
  parts = []
  if isinstance(config, Distill):
    parts = [config.source, config.learner]
  elif isinstance(config, Synthesize):
    parts = [config.method]
  for part in parts:
    if isinstance(part, Prepares):
      raise UsageError(
        f"--experiment has {type(part).__name__}, whose programs depend on what"
        " its `prepare` makes: give an experiment without such a method"
      )
  if isinstance(config, Distill) and isinstance(config.source, Offline):
    return functools.partial(_of_stored, config, _shapes(config.teacher))
  if isinstance(config, Distill) and not isinstance(config.source, Selector):
    return functools.partial(_of_distill, config, _shapes(config.teacher))
  if isinstance(config, Synthesize):
    student = _shapes(config.student) if config.student else None
    teacher = _shapes(config.teacher)
    return functools.partial(_of_synthesize, config, teacher, student)
  raise UsageError(
    f"--experiment is a {type(config).__name__}: give a Synthesize, or a"
    " Distill whose source is not a selection from a pool"
  )


def _shapes(directory: Path) -> Network:
  network, _ = teachers.load(directory)
  return jax.eval_shape(lambda network: network, network)


def _of_distill(config: Distill, teacher: Network) -> Iterator[Piece]:
  source, learner, recipe = config.source, config.learner, config.recipe
  key, teacher = _key(), placement.abstract(placement.constrain, teacher)
  module = models.build(config.student, teacher.spec.classes)
  begin = functools.partial(distill.begin, config, module)
  state = placement.abstract(begin, key, teacher)
  synthesis, learner_state, memory = state
  student = jax.eval_shape(learner.student, learner_state)
  yield from _of_source(
    source, recipe, recipe.synthesis_steps, key, synthesis, teacher, student
  )

  def push(memory, key, synthesis):
    count = distil.images_per_step(source, recipe)
    return replay_buffer.push(memory, source.sample(key, synthesis, count))

  def learn(state, key, images, teacher):
    draw = source.sample if memory is None else replay_buffer.draw
    batch = draw(key, images, recipe.batch_size)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return learner.step(key, state, context)

  if memory is not None:
    yield piece("push to replay buffer", 1, push, memory, key, synthesis)
  images = synthesis if memory is None else memory
  times = recipe.student_steps
  yield piece("student", times, learn, learner_state, key, images, teacher)
  whole = distil.make_round(source, learner, recipe, Loops(rolled=True))
  index = placement.abstract(lambda: jnp.int32(0))
  yield piece(
    "the whole round", 1, whole, state, index, key, teacher, None, None
  )


def _of_synthesize(
  config: Synthesize, teacher: Network, student: Network | None
) -> Iterator[Piece]:
  method, key = config.method, _key()
  recipe = synthesize.recipe_of(method)
  teacher, student = placement.abstract(placement.constrain, (teacher, student))

  def begin(key, teacher, student):
    context = Context(teacher=teacher, student=student, recipe=recipe)
    return method.init(key, context)

  state = placement.abstract(begin, key, teacher, student)
  steps = config.steps or recipe.synthesis_steps
  yield from _of_source(method, recipe, steps, key, state, teacher, student)


def _of_stored(config: Distill, teacher: Network) -> Iterator[Piece]:
  learner, recipe, spec = config.learner, config.recipe, teacher.spec
  count = recipe.batch_size
  key, teacher = _key(), placement.abstract(placement.constrain, teacher)
  module = models.build(config.student, spec.classes)
  begin = functools.partial(distill.begin, config, module)
  state = placement.abstract(begin, key, teacher).learner
  kd = distill.kd_of(learner)
  stored = kd is not None and kd.target == "stored"

  def fetch():
    soft = jnp.zeros((count, spec.classes)) if stored else None
    pixels = jnp.zeros((count, *spec.shape), jnp.uint8)
    return shard(Batch(pixels, jnp.zeros(count, jnp.int32), soft))

  def learn(state, key, batch, teacher):
    images = batch.images.astype(jnp.float32) / 255
    batch = batch._replace(images=images)
    context = Context(teacher=teacher, batch=batch, recipe=recipe)
    return learner.step(key, state, context)

  batch = placement.abstract(fetch)
  yield piece("student", 1, learn, state, key, batch, teacher)


def _of_source(
  method, recipe, steps, key, state, teacher, student
) -> Iterator[Piece]:
  stages = step_functions(method, steps)
  for number, (step_of, times) in enumerate(stages, 1):
    name = type(method).__name__
    if len(stages) > 1:
      name = f"{name}, stage {number} of {len(stages)}"

    def step(key, state, teacher, student, step_of=step_of):
      context = Context(teacher=teacher, student=student, recipe=recipe)
      return step_of(key, state, context)

    yield piece(name, times, step, key, state, teacher, student)


def _key():
  return placement.abstract(lambda: jax.random.key(0))
