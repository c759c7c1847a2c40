"""SFDA-DE: a Gaussian for every class stands in for the source's features.

  L = CDD(s, f) + CDD(softmax(C(s)), softmax(C(f)))
  CDD = mean_c MMD^2_cc - mean_{c != d} MMD^2_cd

Ding et al., "Source-Free Domain Adaptation via Distribution Estimation", CVPR
2022. f are features of target images, s features drawn from the surrogates, C
the classifier; `losses.mmd` has the discrepancy, with five Gaussian kernels.
Every epoch, with a_k the source classifier's weights for class k (anchors):

  spherical k-means of f, from the directions of a_k, gives labels and centres
  images are kept that are near: (1 - cos(f_i, centre)) / 2 < threshold
  classes are kept that have `minimum_images` of them
  s ~ N(|m_k| a_k / |a_k|, g diag(v_k)), m_k and v_k mean and variance of the
  kept images of class k

Defaults are those of a re-implementation, for Office; for VisDA it takes
`distance_threshold=0.078`, `variance_scale=2`, `classes_per_step=6`,
`draws_per_class=10`. Not read in code of the authors: whether C is frozen (here
it is, so that anchors stay what they are).

Deviations: a batch is drawn from all images alike, then the classes that most
of it belongs to are taken, where the re-implementation draws classes first, and
as many target images of each as features. Centre k begins as anchor k and stays
k's: there they are matched anew. Its rate falls as (1 + 5e-4 t)^-2.25: here as
--schedule says. It relabels every 100 steps, not every epoch. BatchNorm's rate
is ten times the others': here its gradient is (`norm_rate`), which for SGD is
the same but for weight decay. Nothing is dropped of features, as the surrogates
are of clean ones.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax import parallel, tails
from dfkt_jax.adaptation import banks, centroids
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses.mmd import contrastive_discrepancy
from dfkt_jax.losses.relation import normalise
from dfkt_jax.network import Network

UNKNOWN = -1  # the label of an image that is not kept
MOST_ROUNDS = 100  # of k-means
STILL = 1e-3  # how little a centre moves when it has come to rest


class Surrogates(NamedTuple):
  """Of every class, in place of the source."""

  mean: jax.Array  # f32[classes, width]
  deviation: jax.Array  # f32[classes, width]
  known: jax.Array  # bool[classes], whether it has images enough


class State(NamedTuple):
  learner: Learner
  anchors: jax.Array  # f32[classes, width], of length 1
  surrogates: Surrogates
  labels: jax.Array  # i32[rows], of all target images


class Info(NamedTuple):
  loss: jax.Array
  features_within: jax.Array  # mean MMD^2 of a class with itself
  features_between: jax.Array  # and with the others
  predictions_within: jax.Array
  predictions_between: jax.Array
  classes: jax.Array  # that the batch and the surrogates share


@dataclasses.dataclass(frozen=True)
class SFDADE:
  """Hyper-parameters; defaults are a re-implementation's for Office."""

  distance_threshold: float = 0.5  # images further from their centre: not kept
  minimum_images: int = 5  # classes with fewer are left out
  variance_scale: float = 1.0  # g
  classes_per_step: int = 10  # at most
  draws_per_class: int = 3  # surrogate features of each
  norm_rate: float = 10.0  # times the gradient of BatchNorm's parameters

  course: ClassVar[Course] = Course(
    lr=1e-4, backbone_rate=1.0, classifier_rate=0.0
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    anchors = normalise(tails.kernel(source, tails.layers(source)[-1]).T)
    return State(course.init(source), anchors, *self.estimate(answers, anchors))

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    surrogates, labels = self.estimate(answers, state.anchors)
    return state._replace(surrogates=surrogates, labels=labels)

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    augment_key, draw_key = jax.random.split(key)
    images = course.augment(augment_key, batch.images)
    labels = banks.read(state.labels, batch.rows)
    drawn, classes = self.draw(draw_key, labels, state.surrogates)
    network = state.learner.network

    def loss(params):
      adapted = network.with_params(params)
      logits, taps, variables = net.train_features(adapted, images, None)
      theirs = tails.classify(adapted, drawn)
      info = self.loss(
        drawn, theirs, taps["penultimate"], logits, labels, classes
      )
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    gradient = self._faster_norms(network, gradient)
    learner = course.update(state.learner, gradient, variables)
    return state._replace(learner=learner), info

  def loss(
    self,
    drawn: jax.Array,
    drawn_logits: jax.Array,
    features: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    classes: jax.Array,
  ) -> Info:
    """Of surrogate features, `draws_per_class` for each of i32[n] classes,
    against f32[batch, width] features with i32[batch] labels.

    A class of UNKNOWN stands for none.
    """
    some = (classes != UNKNOWN)[None]
    numbers = jnp.arange(len(classes))
    sources = (
      jnp.repeat(numbers, self.draws_per_class)[:, None] == numbers[None]
    )
    targets = labels[:, None] == classes[None]
    sources, targets = sources & some, targets & some
    compare = lambda s, t: contrastive_discrepancy(s, t, sources, targets)
    within, between = compare(drawn, features)
    p_within, p_between = compare(
      jax.nn.softmax(drawn_logits), jax.nn.softmax(logits)
    )
    total = within - between + p_within - p_between
    shared = (targets.any(0) & some[0]).sum().astype(jnp.float32)
    return Info(total, within, between, p_within, p_between, shared)

  def draw(
    self, key: jax.Array, labels: jax.Array, surrogates: Surrogates
  ) -> tuple[jax.Array, jax.Array]:
    """f32[n draws, width] features, i32[n] classes that i32[batch] have most.

    Where classes have equally many, chance decides. UNKNOWN: none is left.
    """
    chance_key, noise_key = jax.random.split(key)
    all_classes = len(surrogates.known)
    count = min(self.classes_per_step, all_classes)
    present = (labels[:, None] == jnp.arange(all_classes)[None]).sum(0)
    present = jnp.where(surrogates.known, present, 0)
    chance = jax.random.uniform(chance_key, (all_classes,))
    _, classes = jax.lax.top_k(present + 0.9 * chance, count)
    each = jnp.repeat(classes, self.draws_per_class)
    shape = (len(each), surrogates.mean.shape[1])
    noise = parallel.split(jax.random.normal(noise_key, shape))
    drawn = surrogates.mean[each] + surrogates.deviation[each] * noise
    return drawn, jnp.where(present[classes] > 0, classes, UNKNOWN)

  def estimate(
    self, answers: Answers, anchors: jax.Array
  ) -> tuple[Surrogates, jax.Array]:
    """Surrogates, and i32[rows] labels of all target images."""
    features, valid = normalise(answers.features), answers.valid
    centres = k_means(features, valid, anchors)
    cosines = features @ centres.T
    near = valid & (0.5 * (1.0 - cosines.max(1)) < self.distance_threshold)
    member = jax.nn.one_hot(cosines.argmax(1), len(anchors)) * near[:, None]
    moments = centroids.class_moments(answers.features, member, valid)
    known = moments.weight >= self.minimum_images
    length = jnp.linalg.norm(moments.mean, axis=1, keepdims=True)
    surrogates = Surrogates(
      length * anchors,
      jnp.sqrt(self.variance_scale * moments.variance),
      known,
    )
    kept = (member * known[None]).any(1)
    labels = jnp.where(kept, cosines.argmax(1), UNKNOWN)
    return surrogates, labels.astype(jnp.int32)

  def network(self, state: State) -> Network:
    return state.learner.network

  def _faster_norms(self, network, gradient):
    scale = lambda norm, leaf: self.norm_rate * leaf if norm else leaf
    return jax.tree.map(scale, net.batch_norm_params(network), gradient)


def k_means(
  features: jax.Array, valid: jax.Array, centres: jax.Array
) -> jax.Array:
  """Spherical k-means: centres of length 1 by cosine, f32[classes, width].

  From the given ones, until they rest. A centre without images stays.

  Args:
    features: f32[rows, width], of length 1.
    valid: bool[rows].
    centres: f32[classes, width], of length 1.
  """

  def move(carry):
    round_, centres, _ = carry
    nearest = jax.nn.one_hot((features @ centres.T).argmax(1), len(centres))
    nearest *= valid[:, None]
    moved = normalise(nearest.T @ features)
    moved = jnp.where(nearest.any(0)[:, None], moved, centres)
    change = jnp.linalg.norm(moved - centres, axis=1).max()
    return round_ + 1, moved, change

  restless = lambda carry: (carry[0] < MOST_ROUNDS) & (carry[2] >= STILL)
  start = (jnp.int32(0), centres, jnp.float32(jnp.inf))
  return jax.lax.while_loop(restless, move, start)[1]
