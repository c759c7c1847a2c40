"""The programs of an experiment, with shapes in the place of arrays."""

from collections.abc import Callable, Iterator
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax import models, parallel, placement, teachers
from dfkt_jax.bench.workloads import Piece, piece
from dfkt_jax.commands import distill, offline, synthesize
from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.offline import DistillOffline
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.distillation import pool as pools
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network
from dfkt_jax.synthesis import contract
from dfkt_jax.synthesis.contract import Batch


def prepare(config: Any) -> Callable[[], Iterator[Piece]]:
  """What makes an experiment's pieces, once its networks have been read.

  They are for the current mesh, which may be of described devices. Of a Distill
  the steps that a round is made of, and then the round as the one program that
  it is on an accelerator. Of a Synthesize a step of each stage, of a
  DistillOffline the student's.

  Raises:
    UsageError: it is another experiment.
    DfktError: its teacher cannot be read.
  """
  if isinstance(config, Distill):
    return functools.partial(_of_distill, config, _shapes(config.teacher))
  if isinstance(config, Synthesize):
    student = _shapes(config.student) if config.student else None
    teacher = _shapes(config.teacher)
    return functools.partial(_of_synthesize, config, teacher, student)
  if isinstance(config, DistillOffline):
    return functools.partial(_of_offline, config, _shapes(config.teacher))
  raise UsageError(
    f"--experiment is a {type(config).__name__}: give one that is a Distill, a"
    " DistillOffline or a Synthesize"
  )


def _shapes(directory: Path) -> Network:
  network, _ = teachers.load(directory)
  return jax.eval_shape(lambda network: network, network)


def _of_distill(config: Distill, teacher: Network) -> Iterator[Piece]:
  method, transfer = config.method, config.transfer
  key, teacher = _key(), placement.outline(placement.constrain, teacher)
  module = models.build(config.student, teacher.spec.classes)
  init = functools.partial(distill.begin, config, module)
  state = placement.outline(init, key, teacher)
  synthesis, learner, pool = state
  steps = transfer.synthesis_steps
  yield from _of_method(method, steps, key, synthesis, teacher, learner.student)

  def push(pool, key, synthesis):
    count = transfers.images_per_step(method, transfer)
    return pools.push(pool, method.sample(key, synthesis, count))

  def learn(learner, key, source, teacher):
    draw = method.sample if pool is None else pools.draw
    batch = draw(key, source, transfer.batch_size)
    return transfer.kd.step(key, learner, batch, teacher)

  if pool is not None:
    yield piece("push to pool", 1, push, pool, key, synthesis)
  source = synthesis if pool is None else pool
  times = transfer.student_steps
  yield piece("student", times, learn, learner, key, source, teacher)
  whole = transfers.make_round(method, transfer, Loops(rolled=True))
  index = placement.outline(lambda: jnp.int32(0))
  yield piece("the whole round", 1, whole, state, index, key, teacher)


def _of_synthesize(
  config: Synthesize, teacher: Network, student: Network | None
) -> Iterator[Piece]:
  method, key = config.method, _key()
  teacher, student = placement.outline(placement.constrain, (teacher, student))
  state = placement.outline(method.init, key, teacher, student)
  steps = config.steps or synthesize.recipe(method).synthesis_steps
  yield from _of_method(method, steps, key, state, teacher, student)


def _of_offline(config: DistillOffline, teacher: Network) -> Iterator[Piece]:
  method, count, spec = config.method, config.method.batch_size, teacher.spec
  key, teacher = _key(), placement.outline(placement.constrain, teacher)
  module = models.build(config.student, spec.classes)
  init = functools.partial(offline.begin, method, module)
  state = placement.outline(init, key, teacher)

  def fetch():
    soft = jnp.zeros((count, spec.classes))
    pixels = jnp.zeros((count, *spec.shape), jnp.uint8)
    stored = soft if method.kd.target == "stored" else None
    return parallel.split(Batch(pixels, jnp.zeros(count, jnp.int32), stored))

  index, batch = placement.outline(lambda: (jnp.int32(0), fetch()))
  yield piece("student", 1, method.step, key, state, index, batch, teacher)


def _of_method(method, steps, *arguments) -> Iterator[Piece]:
  stages = contract.stages(method, steps)
  for number, (stage, times) in enumerate(stages, 1):
    name = type(method).__name__
    if len(stages) > 1:
      name = f"{name}, stage {number} of {len(stages)}"
    yield piece(name, times, stage.step, *arguments)


def _key():
  return placement.outline(lambda: jax.random.key(0))
