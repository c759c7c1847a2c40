"""SFDA-DE: a Gaussian for every class stands in for the source's features.

  L = CDD(s, f) + CDD(softmax(C(s)), softmax(C(f)))
  CDD = mean_c MMD^2_cc - mean_{c != d} MMD^2_cd

Ding et al., "Source-Free Domain Adaptation via Distribution Estimation", CVPR
2022. f are features of target images, s features drawn from the surrogates, C
is the classifier; the discrepancy is that of `losses.mmd`, with five Gaussian
kernels. In every epoch, with a_k the source classifier's weights for class k
(the anchors):

  spherical k-means of f, from the directions of a_k, gives labels and centers
  near images are kept: (1 - cos(f_i, center)) / 2 < threshold
  classes with `minimum_images` kept images are kept
  s ~ N(|m_k| a_k / |a_k|, g diag(v_k)), with m_k and v_k the mean and variance
  of the kept images of class k

The defaults are those of a re-implementation for Office; it uses
`distance_threshold=0.078`, `variance_scale=2`, `classes_per_step=6` and
`draws_per_class=10` for VisDA. We have not read in code of the authors whether
C is frozen; here it is, so that the anchors do not change.

Deviations:
  - A batch is drawn from all images alike, and then the classes with most
    images in it are used. The re-implementation draws classes first, and as
    many target images of each as features.
  - Center k starts as anchor k and stays that of class k. There, centers are
    matched to anchors again.
  - The rate there falls as (1 + 5e-4 t)^-2.25, here by --schedule.
  - Labels are made every epoch, there every 100 steps.
  - BatchNorm's rate there is ten times the others'. Here its gradient is
    (`norm_rate`), which for SGD is the same except for weight decay.
  - Features have no dropout, as the surrogates come from features without it.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation import centroids
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import (
  Context,
  NonNegative,
  Positive,
  Predictions,
  Share,
)
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses.mmd import contrastive_discrepancy
from dfkt_jax.losses.relation import normalize
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network, layers

UNKNOWN = -1  # the label of an image that is not kept
MOST_ROUNDS = 100  # of k-means
STILL = 1e-3  # largest move of a center that counts as rest


class Surrogates(NamedTuple):
  """Gaussians of every class that replace the source's features."""

  mean: jax.Array  # f32[classes, width]
  deviation: jax.Array  # f32[classes, width]
  known: jax.Array  # bool[classes], whether the class has enough images


class State(NamedTuple):
  """The network, and the surrogates and labels of the epoch."""

  train: TrainState
  anchors: jax.Array  # f32[classes, width], of length 1
  surrogates: Surrogates
  labels: jax.Array  # i32[rows], of all target images


class Info(NamedTuple):
  """The loss and its terms."""

  loss: jax.Array
  features_within: jax.Array  # mean MMD^2 of a class with itself
  features_between: jax.Array  # and with the others
  predictions_within: jax.Array
  predictions_between: jax.Array
  classes: jax.Array  # number that the batch and the surrogates share


@dataclasses.dataclass(frozen=True)
class SFDADE:
  """Hyper-parameters; the defaults are a re-implementation's for Office."""

  # Images further from their center are not kept.
  distance_threshold: Annotated[float, Share] = 0.5
  # Classes with fewer images are left out.
  minimum_images: Annotated[int, NonNegative] = 5
  variance_scale: Annotated[float, NonNegative] = 1.0  # g
  classes_per_step: Annotated[int, Positive] = 10  # at most
  draws_per_class: Annotated[int, Positive] = 3  # surrogate features of each
  # Factor of the gradient of BatchNorm's parameters.
  norm_rate: Annotated[float, NonNegative] = 10.0

  recipe: ClassVar[Recipe] = Recipe(
    lr=1e-4, backbone_rate=1.0, classifier_rate=0.0
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, its anchors, and surrogates and labels from them."""
    source = context.teacher
    anchors = normalize(layers.kernel(source, layers.list_layers(source)[-1]).T)
    surrogates, labels = self.estimate(context.predictions, anchors)
    return State(context.recipe.init(source), anchors, surrogates, labels)

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with surrogates and labels of a new epoch."""
    surrogates, labels = self.estimate(context.predictions, state.anchors)
    return state._replace(surrogates=surrogates, labels=labels)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step down the discrepancy of the batch and drawn features."""
    recipe, batch = context.recipe, context.batch
    augment_key, draw_key = jax.random.split(key)
    images = recipe.augment(augment_key, batch.images)
    labels = feature_bank.read(state.labels, batch.rows)
    drawn, classes = self.draw(draw_key, labels, state.surrogates)
    network = state.train.network

    def loss(params):
      adapted = network.with_params(params)
      logits, taps, variables = net.train_features(adapted, images, None)
      drawn_logits = layers.classify(adapted, drawn)
      info = self.loss(
        drawn, drawn_logits, taps["penultimate"], logits, labels, classes
      )
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    gradient = self._scale_norms(network, gradient)
    train = recipe.update(state.train, gradient, variables)
    return state._replace(train=train), info

  def loss(
    self,
    drawn: jax.Array,
    drawn_logits: jax.Array,
    features: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    classes: jax.Array,
  ) -> Info:
    """Return the loss of surrogate features against those of a batch.

    Args:
      drawn: f32[n draws, width], `draws_per_class` for each of `classes`.
      drawn_logits: f32[n draws, all classes].
      features: f32[batch, width].
      logits: f32[batch, all classes].
      labels: i32[batch]; UNKNOWN: of no class.
      classes: i32[n]; UNKNOWN: an empty place.
    """
    used = (classes != UNKNOWN)[None]
    numbers = jnp.arange(len(classes))
    sources = (
      jnp.repeat(numbers, self.draws_per_class)[:, None] == numbers[None]
    )
    targets = labels[:, None] == classes[None]
    sources, targets = sources & used, targets & used
    compare = lambda s, t: contrastive_discrepancy(s, t, sources, targets)
    within, between = compare(drawn, features)
    p_within, p_between = compare(
      jax.nn.softmax(drawn_logits), jax.nn.softmax(logits)
    )
    total = within - between + p_within - p_between
    shared = (targets.any(0) & used[0]).sum().astype(jnp.float32)
    return Info(total, within, between, p_within, p_between, shared)

  def draw(
    self, key: jax.Array, labels: jax.Array, surrogates: Surrogates
  ) -> tuple[jax.Array, jax.Array]:
    """Draw features of the classes with most images in a batch.

    Ties are broken at random.

    Args:
      labels: i32[batch].

    Returns:
      f32[n draws, width] features and i32[n] classes; UNKNOWN where no class is
      left.
    """
    chance_key, noise_key = jax.random.split(key)
    all_classes = len(surrogates.known)
    count = min(self.classes_per_step, all_classes)
    present = (labels[:, None] == jnp.arange(all_classes)[None]).sum(0)
    present = jnp.where(surrogates.known, present, 0)
    chance = jax.random.uniform(chance_key, (all_classes,))
    _, classes = jax.lax.top_k(present + 0.9 * chance, count)
    repeated = jnp.repeat(classes, self.draws_per_class)
    shape = (len(repeated), surrogates.mean.shape[1])
    noise = shard(jax.random.normal(noise_key, shape))
    drawn = surrogates.mean[repeated] + surrogates.deviation[repeated] * noise
    return drawn, jnp.where(present[classes] > 0, classes, UNKNOWN)

  def estimate(
    self, predictions: Predictions, anchors: jax.Array
  ) -> tuple[Surrogates, jax.Array]:
    """Return surrogates, and i32[rows] labels of all target images."""
    features, valid = normalize(predictions.features), predictions.valid
    centers = k_means(features, valid, anchors)
    cosines = features @ centers.T
    near = valid & (0.5 * (1.0 - cosines.max(1)) < self.distance_threshold)
    member = jax.nn.one_hot(cosines.argmax(1), len(anchors)) * near[:, None]
    moments = centroids.class_moments(predictions.features, member, valid)
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
    """Return the network as it is."""
    return state.train.network

  def _scale_norms(self, network, gradient):
    scale = lambda norm, leaf: self.norm_rate * leaf if norm else leaf
    return jax.tree.map(scale, net.batch_norm_params(network), gradient)


def k_means(
  features: jax.Array, valid: jax.Array, centers: jax.Array
) -> jax.Array:
  """Return the centers of spherical k-means, f32[classes, width] of length 1.

  It starts from the given centers and ends when they rest. A center without
  images stays where it is.

  Args:
    features: f32[rows, width], of length 1.
    valid: bool[rows].
    centers: f32[classes, width], of length 1.
  """

  def move(carry):
    round_, centers, _ = carry
    nearest = jax.nn.one_hot((features @ centers.T).argmax(1), len(centers))
    nearest *= valid[:, None]
    moved = normalize(nearest.T @ features)
    moved = jnp.where(nearest.any(0)[:, None], moved, centers)
    change = jnp.linalg.norm(moved - centers, axis=1).max()
    return round_ + 1, moved, change

  restless = lambda carry: (carry[0] < MOST_ROUNDS) & (carry[2] >= STILL)
  start = (jnp.int32(0), centers, jnp.float32(jnp.inf))
  return jax.lax.while_loop(restless, move, start)[1]
