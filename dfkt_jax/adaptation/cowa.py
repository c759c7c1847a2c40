"""CoWA-JMDS: labels of a Gaussian mixture, each weighed by how it is trusted.

  L = - mean_i w'_i sum_k y'_ik log p_k(x'_i)
  (x', y', w')_i = l_i (x, y, w)_i + (1 - l_i) (x, y, w)_j,   l_i ~ Beta(a, a)

Lee et al., "Confidence Score for Source-Free Unsupervised Domain Adaptation",
ICML 2022: weight mixup, where j is another image of the batch. Nothing else is
in the loss. Every epoch, from features f of length 1 and predictions p:

  g      posteriors of a Gaussian mixture (`mixture`) that has the predictions
         as responsibilities and, for every class, the covariance of all images;
         then of one that has those posteriors as both
  y_i    argmax_k g_ik
  LPG_i  (largest log g_i - second largest) / the largest such gap of the target
  w_i    LPG_i p_i(y_i), the joint model-data structure score

For `warmup` epochs the loss counts 1e-6, so that little but BatchNorm's
statistics moves (weight decay does too), as released.

The defaults are released code's for Office-Home; for VisDA it takes
`mixup_alpha=2`, `warmup=1`, 15 epochs; for DomainNet-126 `mixup_alpha=1` and
`--lr 1e-3`. The rate does not fall. Deviations: released code crops and mirrors
a batch as a whole, here each image has its own draw, where --crop-padding and
--flip ask for it. Where e is too little it is raised (`mixture`).

The gap of one image decides how much all others count. Features that are often
0 (a network without a bottleneck) have classes with hardly any variance in many
directions, and then nearly all weights are small: raise `epsilon` and --lr.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.adaptation import banks, mixture
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses.relation import normalise
from dfkt_jax.network import Network

WARMUP_WEIGHT = 1e-6


class State(NamedTuple):
  learner: Learner
  labels: jax.Array  # i32[rows], of all target images
  weights: jax.Array  # f32[rows] in [0, 1], how they are trusted
  epoch: jax.Array  # i32[], relabellings since the first


class Info(NamedTuple):
  """Between epochs the loss may rise: weights grow with the predictions."""

  loss: jax.Array
  cross_entropy: jax.Array  # unweighted
  weight: jax.Array  # mean w


@dataclasses.dataclass(frozen=True)
class CoWA:
  """Hyper-parameters; defaults are released code's for Office-Home."""

  mixup_alpha: float = 0.2  # a of Beta(a, a)
  warmup: int = 0  # epochs in which the loss hardly counts
  epsilon: float = 1e-6  # e, added to the variances of the mixture

  course: ClassVar[Course] = Course(
    epochs=30, schedule="constant", classifier_rate=0.1
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    return State(course.init(source), *self.trust(answers), jnp.int32(0))

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    return State(state.learner, *self.trust(answers), state.epoch + 1)

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    augment_key, mix_key, dropout_key = jax.random.split(key, 3)
    network = state.learner.network
    labels = banks.read(state.labels, batch.rows)
    plain = (
      course.augment(augment_key, batch.images),
      jax.nn.one_hot(labels, network.spec.classes),
      banks.read(state.weights, batch.rows),
    )
    mixed = augment.mixup(mix_key, plain, self.mixup_alpha, each=True)
    images, targets, weights = mixed

    def loss(params):
      logits, variables = net.train_logits(
        network.with_params(params), images, dropout_key
      )
      info = self.loss(logits, targets, weights, state.epoch)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    learner = course.update(state.learner, gradient, variables)
    return state._replace(learner=learner), info

  def loss(
    self,
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    epoch: jax.Array,
  ) -> Info:
    """Of f32[batch, classes] logits and targets, f32[batch] weights."""
    each = -(targets * jax.nn.log_softmax(logits)).sum(1)
    factor = jnp.where(epoch < self.warmup, WARMUP_WEIGHT, 1.0)
    loss = factor * (weights * each).mean()
    return Info(loss, each.mean(), weights.mean())

  def trust(self, answers: Answers) -> tuple[jax.Array, jax.Array]:
    """i32[rows] labels y and f32[rows] weights w."""
    p, valid = jax.nn.softmax(answers.logits), answers.valid[:, None]
    features = normalise(answers.features)
    own = lambda r: jnp.where(valid, r, 0.0)
    everyone = own(jnp.ones_like(p))
    first = mixture.log_joint(features, own(p), everyone, self.epsilon)
    posterior = own(jax.nn.softmax(first))
    joint = mixture.log_joint(features, posterior, posterior, self.epsilon)
    labels = joint.argmax(1).astype(jnp.int32)
    top = jax.lax.top_k(joint, 2)[0]
    gap = jnp.where(answers.valid, top[:, 0] - top[:, 1], 0.0)
    gap /= jnp.maximum(gap.max(), 1e-12)
    return labels, gap * jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]

  def network(self, state: State) -> Network:
    return state.learner.network
