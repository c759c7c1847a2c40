"""TENT: the predictions' entropy falls by BatchNorm's scale and bias alone.

  L = mean H(p)

Wang et al., "Tent: Fully Test-time Adaptation by Entropy Minimization", ICLR
2021, equation 1. Online: every image is predicted before the update of its
batch, with BatchNorm on the batch's own statistics (as released). `decisions`
keeps these predictions. The last batch is filled up with images seen before.
`episodic=True` forgets after every batch.

Deviations: all BatchNorms take part, that of a bottleneck too, where released
code has those of convolutions alone; and running statistics follow the target,
where released code keeps none, so that the network can be used afterwards.

It can collapse: too long, too fast, with small batches, or with images that
come sorted by class, all predictions end in one class. `dfkt adapt` warns.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation import banks
from dfkt_jax.adaptation.ada_bn import require_batch_norm
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.network import Network


class State(NamedTuple):
  learner: Learner
  start: Learner | None  # what an episode begins with
  decisions: jax.Array  # i32[rows], made online; -1: not yet


class Info(NamedTuple):
  entropy: jax.Array
  marginal_entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class Tent:
  """Hyper-parameters; defaults are the paper's for CIFAR-10-C."""

  steps_per_batch: int = 1
  episodic: bool = False  # begin every batch with the source

  course: ClassVar[Course] = Course(
    epochs=1,
    batch_size=200,
    optimizer="adam",
    lr=1e-3,
    schedule="constant",
    weight_decay=0.0,
    backbone_rate=1.0,
    trained="norm",
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    require_batch_norm(source, "tent")
    learner = course.init(source)
    decisions = jnp.full(len(answers.logits), -1)
    return State(learner, learner if self.episodic else None, decisions)

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    learner = state.learner if state.start is None else state.start
    for _ in range(self.steps_per_batch):
      learner, logits = self._update(learner, batch, course)
    info = Info(
      information.entropy(logits), information.marginal_entropy(logits)
    )
    # The last batch may hold images a second time: their first answer stands.
    first = banks.read(state.decisions, batch.rows) < 0
    rows = jnp.where(first, batch.rows, len(state.decisions))
    decisions = banks.write(
      state.decisions, rows, logits.argmax(1).astype(jnp.int32)
    )
    if state.start is not None:
      learner = state.start._replace(step=learner.step)
    return State(learner, state.start, decisions), info

  def network(self, state: State) -> Network:
    return state.learner.network

  def _update(self, learner, batch, course):
    network = learner.network

    def loss(params):
      # Nothing is dropped: these are predictions.
      logits, variables = net.train_logits(
        network.with_params(params), batch.images, None
      )
      return information.entropy(logits), (variables, logits)

    gradient, (variables, logits) = jax.grad(loss, has_aux=True)(network.params)
    return course.update(learner, gradient, variables), logits
