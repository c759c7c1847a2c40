"""The transfer round: n synthesis steps, then m steps of the student.

Without a pool the student learns from fresh samples of the method, which goes
on from round to round (a generator). With one, the finished images are pushed
to the pool, the student learns from the pool, and the method begins its next
batch (optimised pixels). Offline, the pool is filled once, the transfer set,
and then the student learns without further synthesis.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax

from dfkt_jax.distillation import pool as pools
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.kd import State as Learner
from dfkt_jax.distillation.pool import Pool
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch, Synthesizer, stages

# Streams of random keys; within one, a key is folded with the step it serves.
INIT, SYNTHESIS, HARVEST, RESTART, DRAW, STUDENT, PREVIEW = range(7)


class State(NamedTuple):
  synthesis: Any
  learner: Learner
  pool: Pool | None


@dataclasses.dataclass(frozen=True)
class Transfer:
  """How synthesis and distillation alternate."""

  kd: KD = KD()
  batch_size: int = 256  # images of one student step
  synthesis_steps: int = 1  # a round; with a pool, the steps a batch gets
  student_steps: int = 10  # a round
  pool_size: int = 0  # images kept; 0: the student sees fresh samples only
  warmup_rounds: int = 0  # rounds of synthesis before the student begins
  offline: bool = False  # warm up until the pool is full, then only learn

  def warmup(self, method: Synthesizer) -> int:
    """Rounds before the student begins."""
    if not self.offline:
      return self.warmup_rounds
    return -(-self.pool_size // images_per_step(method, self))

  def rounds(self, method: Synthesizer) -> int:
    """Rounds in all, warm-up included."""
    return self.warmup(method) + -(-self.kd.steps // self.student_steps)


def stream(key: jax.Array, name: int, step: Any) -> jax.Array:
  """The key of one step of one stream: a function of (seed, step) alone."""
  return jax.random.fold_in(jax.random.fold_in(key, name), step)


def images_per_step(method: Synthesizer, transfer: Transfer) -> int:
  return getattr(method, "synthesis_batch_size", transfer.batch_size)


def init(
  key: jax.Array,
  method: Synthesizer,
  transfer: Transfer,
  teacher: Network,
  student: Network,
) -> State:
  """The state before the first round."""
  synthesis = method.init(stream(key, INIT, 0), teacher, student)
  pool = None
  if transfer.pool_size:
    sample = jax.eval_shape(
      lambda key, state: method.sample(key, state, 1), key, synthesis
    )
    soft = 0 if sample.soft_labels is None else sample.soft_labels.shape[1]
    made = images_per_step(method, transfer)
    pool = pools.init(transfer.pool_size, teacher.spec.shape, made, soft)
  return State(synthesis, transfer.kd.init(student), pool)


def make_round(
  method: Synthesizer,
  transfer: Transfer,
  loops: Loops,
  learn: bool = True,
  synthesise: bool = True,
) -> Callable[[State, Any, jax.Array, Network], tuple[State, dict]]:
  """round(state, index, key, teacher) -> (state, infos).

  `index` counts rounds from 0; `state` is donated. `infos` has "synthesis"
  unless `synthesise` is False (offline) and "distillation" unless `learn` is
  (warm-up): Info tuples of the method and of KD, every field f32[steps].
  """
  kd, batch_size = transfer.kd, transfer.batch_size

  def synthesis_step(stage, state, step, key, teacher, student):
    key = stream(key, SYNTHESIS, step)
    return stage.step(key, state, teacher, student)

  def student_step(learner, step, key, teacher, batch):
    key = stream(key, STUDENT, step)
    return kd.step(key, learner, batch, teacher)

  def learn_fresh(learner, step, key, teacher, synthesis):
    batch = method.sample(stream(key, DRAW, step), synthesis, batch_size)
    return student_step(learner, step, key, teacher, batch)

  def learn_pool(learner, step, key, teacher, pool):
    batch = pools.draw(stream(key, DRAW, step), pool, batch_size)
    return student_step(learner, step, key, teacher, batch)

  def harvest(pool, synthesis, index, key):
    count = images_per_step(method, transfer)
    batch = method.sample(stream(key, HARVEST, index), synthesis, count)
    return pools.push(pool, batch)

  def restart(synthesis, index, key, teacher, student):
    key = stream(key, RESTART, index)
    if hasattr(method, "restart"):
      return method.restart(key, synthesis, teacher, student)  # type: ignore
    return method.init(key, teacher, student)

  optimise = loops.chain(
    [
      (partial(synthesis_step, stage), steps)
      for stage, steps in stages(method, transfer.synthesis_steps)
    ]
  )
  study = loops.repeat(
    learn_pool if transfer.pool_size else learn_fresh, transfer.student_steps
  )
  harvest = loops.stage(harvest, donate=0)
  restart = loops.stage(restart)

  def transfer_round(state, index, key, teacher):
    synthesis, learner, pool = state
    infos = {}
    if synthesise:
      first = index * transfer.synthesis_steps
      synthesis, infos["synthesis"] = optimise(
        synthesis, first, key, teacher, learner.student
      )
    if synthesise and transfer.pool_size:
      pool = harvest(pool, synthesis, index, key)
      synthesis = restart(synthesis, index, key, teacher, learner.student)
    if learn:
      first = (index - transfer.warmup(method)) * transfer.student_steps
      source = pool if transfer.pool_size else synthesis
      learner, infos["distillation"] = study(
        learner, first, key, teacher, source
      )
    return State(synthesis, learner, pool), infos

  return loops.whole(transfer_round)


def preview(
  key: jax.Array, method: Synthesizer, state: State, count: int
) -> Batch:
  """`count` images of the kind that the student learns from just now."""
  if state.pool is not None:
    return pools.latest(state.pool, min(count, state.pool.capacity))
  return method.sample(stream(key, PREVIEW, 0), state.synthesis, count)
