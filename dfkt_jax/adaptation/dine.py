"""DINE: a network learns from what a black box says of the target.

  L = KL(M_i || p_i) + mean H(p) - H(mean p) + KL(sg(p') || p(x'))
  (x', p') = w (x, p) + (1 - w) (x, p) of another image,   w ~ Beta(.3, .3)

Liang et al., "DINE: Domain Adaptation from Single and Multiple Black-box
Predictors", CVPR 2022. M is a memory of the source's predictions, asked for
once: the `kept_classes` largest probabilities stay and the others share the
rest evenly. It takes in what the new network says, M <- .6 M + .4 p, ten times
over the distillation. The last `tuning_share` of the steps has the two middle
terms alone. One w a batch; sg: a constant to the gradient.

The source's weights are never read: of the source this file takes the
predictions, the shape of the images and how they are normalised, the classes
and, unless `arch` names one, the architecture, whose weights are drawn anew.
`dfkt adapt` asks the source for its predictions too, to start with and to
compare accuracies; but its target/bn_drift, of the log alone, does compare
BatchNorm with the source's.

Deviations. The paper's network begins with ImageNet weights, and all but its
head learns at a tenth of the rate; ours is drawn at random, so --backbone-rate
is 1. Its rate falls with exponent 1.5, ours by `poly` with 0.75 over both
stages. It updates M between steps, we at the start of an epoch, so no more than
once in each. It leaves tuning once decisions settle, ours lasts a quarter of
the course (ours) after 30 epochs. BatchNorm's running statistics do not see
mixed images, as released code intends but does not do.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment, models
from dfkt_jax import network as net
from dfkt_jax.adaptation import banks
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.network import Network


class State(NamedTuple):
  learner: Learner
  memory: jax.Array  # f32[rows, classes], M
  updates: jax.Array  # i32[], of the memory


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array
  distillation: jax.Array
  information: jax.Array  # mean H(p) - H(mean p)
  mixup: jax.Array
  tuning: jax.Array  # 1 in the last stage


@dataclasses.dataclass(frozen=True)
class DINE:
  """Hyper-parameters; defaults are released code's for Office-Home."""

  arch: str = ""  # of the new network, see 'dfkt list archs'; "": the source's
  kept_classes: int = 1  # r, probabilities of the source that are kept
  memory_momentum: float = 0.6  # what M keeps of itself
  memory_updates: int = 10  # over the distillation
  information_weight: float = 1.0
  mixup_weight: float = 1.0
  mixup_alpha: float = 0.3  # of Beta(alpha, alpha)
  tuning_share: float = 0.25  # of the steps, the last ones

  course: ClassVar[Course] = Course(epochs=40, backbone_rate=1.0)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    spec, module = source.spec, source.module
    if self.arch:
      module = models.build(self.arch, spec.classes)
    network = net.init(key, module, spec)
    memory = smooth(jax.nn.softmax(answers.logits), self.kept_classes)
    return State(course.init(network), memory, jnp.int32(0))

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    share = course.progress(state.learner) / max(1.0 - self.tuning_share, 1e-6)
    # A tenth of the steps is a tenth, however it was rounded.
    due = jnp.floor(jnp.minimum(share, 1.0) * self.memory_updates + 1e-4)
    due = due.astype(jnp.int32)
    keep = jnp.where(due > state.updates, self.memory_momentum, 1.0)
    p = jax.nn.softmax(answers.logits)
    memory = keep * state.memory + (1.0 - keep) * p
    return State(state.learner, memory, jnp.maximum(due, state.updates))

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    keys = jax.random.split(key, 4)
    images = course.augment(keys[0], batch.images)
    targets = banks.read(state.memory, batch.rows)
    network = state.learner.network
    tuning = course.progress(state.learner) >= 1.0 - self.tuning_share

    def loss(params):
      now = network.with_params(params)
      logits, variables = net.train_logits(now, images, keys[1])
      p = jax.lax.stop_gradient(jax.nn.softmax(logits))
      mixed = augment.mixup(keys[2], (images, p), self.mixup_alpha)
      mixed_logits, _ = net.train_logits(now, mixed[0], keys[3])
      info = self.loss(logits, targets, mixed_logits, mixed[1], tuning)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    learner = course.update(state.learner, gradient, variables)
    return state._replace(learner=learner), info

  def loss(
    self,
    logits: jax.Array,
    targets: jax.Array,
    mixed_logits: jax.Array,
    mixed_targets: jax.Array,
    tuning: jax.Array,
  ) -> Info:
    """All f32[batch, classes]; targets are probabilities."""
    distilled = divergence(targets, logits)
    mixed = divergence(mixed_targets, mixed_logits)
    sure = information.information_maximisation(logits)
    taught = distilled + self.mixup_weight * mixed
    total = self.information_weight * sure + jnp.where(tuning, 0.0, taught)
    return Info(total, distilled, sure, mixed, tuning.astype(jnp.float32))

  def network(self, state: State) -> Network:
    return state.learner.network


def smooth(p: jax.Array, kept: int) -> jax.Array:
  """f32[rows, classes]: so many of the largest kept, the rest made even."""
  classes = p.shape[1]
  if kept >= classes:
    return p
  largest, _ = jax.lax.top_k(p, kept)
  # Of equal probabilities the first count, so that `kept` and no more do.
  rank = jnp.argsort(jnp.argsort(-p, axis=1), axis=1)
  rest = (1.0 - largest.sum(1, keepdims=True)) / (classes - kept)
  return jnp.where(rank < kept, p, jnp.maximum(rest, 0.0))


def divergence(p: jax.Array, logits: jax.Array) -> jax.Array:
  """mean KL(p || softmax(logits)), of f32[batch, classes] each."""
  log_q = jax.nn.log_softmax(logits)
  return (jax.scipy.special.xlogy(p, p) - p * log_q).sum(1).mean()
