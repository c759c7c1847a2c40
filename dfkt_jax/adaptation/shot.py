"""SHOT and SHOT-IM: the classifier is kept, features move until they fit it.

  L = beta CE(x, y) + mean H(p) - H(mean p)

Liang et al., "Do We Really Need to Access the Source Data?", ICML 2020,
equations 2 to 7. y are pseudo-labels from the centroids of all target features
(`centroids`), made anew every epoch; SHOT-IM is beta = 0. BatchNorm runs on the
batch and its running statistics move to the target. The last iterate counts.

Partial sets (the target lacks classes of the source): `diversity_weight=0`,
`threshold=10`. Open sets (it has others): `open_set=True` splits the images by
entropy into two at every relabelling (2-means, as released): only the sure ones
make centroids and have labels, cross-entropy and entropy; all are in the mean.

beta is 0.3 for objects and 0.1 for digits (paper, section 4.2).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.banks import read
from dfkt_jax.adaptation.centroids import pseudo_labels, sure
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.network import Network

UNKNOWN = -1  # the pseudo-label of an image that is taken for no class


class State(NamedTuple):
  learner: Learner
  labels: jax.Array  # i32[rows], of all target images
  epoch: jax.Array  # i32[], relabellings since the first


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array
  cross_entropy: jax.Array
  entropy: jax.Array
  marginal_entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class SHOT:
  """Hyper-parameters; defaults are the paper's for objects."""

  label_weight: float = 0.3  # beta; 0 is SHOT-IM
  diversity_weight: float = 1.0  # of H(mean p)
  threshold: int = 0  # classes with no more predictions have no centroid
  label_warmup: int = 0  # epochs without the labels' term (released: VisDA 1)
  open_set: bool = False

  course: ClassVar[Course] = Course(classifier_rate=0.0)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    return State(course.init(source), self._labels(answers), jnp.int32(0))

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    return State(state.learner, self._labels(answers), state.epoch + 1)

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    augment_key, dropout_key = jax.random.split(key)
    images = course.augment(augment_key, batch.images)
    labels = read(state.labels, batch.rows)
    network = state.learner.network

    def loss(params):
      logits, variables = net.train_logits(
        network.with_params(params), images, dropout_key
      )
      info = self.loss(logits, labels, state.epoch)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    learner = course.update(state.learner, gradient, variables)
    return state._replace(learner=learner), info

  def loss(
    self, logits: jax.Array, labels: jax.Array, epoch: jax.Array
  ) -> Info:
    """Of f32[batch, classes] logits against i32[batch] pseudo-labels."""
    known = labels != UNKNOWN
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    cross_entropy = -information.mean(own, known)
    entropy = information.entropy(logits, known)
    marginal = information.marginal_entropy(logits)
    weight = jnp.where(epoch < self.label_warmup, 0.0, self.label_weight)
    total = weight * cross_entropy + entropy - self.diversity_weight * marginal
    # Of a batch without a known image only the mean would be left.
    total = jnp.where(known.any(), total, 0.0)
    return Info(total, cross_entropy, entropy, marginal)

  def network(self, state: State) -> Network:
    return state.learner.network

  def _labels(self, answers):
    known = answers.valid
    if self.open_set:
      known &= sure(answers.logits, answers.valid)
    labels = pseudo_labels(
      answers.features,
      jax.nn.softmax(answers.logits),
      known,
      self.threshold,
    )
    return jnp.where(known, labels, UNKNOWN)
