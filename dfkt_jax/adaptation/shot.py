"""SHOT and SHOT-IM: the classifier stays, the features move until they fit it.

  L = beta CE(x, y) + mean H(p) - H(mean p)

Liang et al., "Do We Really Need to Access the Source Data?", ICML 2020,
equations 2 to 7. y are pseudo-labels from the centroids of all target features
(`centroids`), made anew every epoch; SHOT-IM is beta = 0. BatchNorm runs on the
batch, and its running statistics move to the target. The last iterate counts.

For partial sets (the target lacks classes of the source) set
`diversity_weight=0` and `threshold=10`. For open sets (the target has other
classes) set `open_set=True`, which splits the images by entropy into two groups
at every relabeling (2-means, as released). Only the surer images form
centroids and have labels, cross-entropy and entropy; all are in the mean.

beta is 0.3 for objects and 0.1 for digits (paper, section 4.2).
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.centroids import pseudo_labels, sure
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Predictions
from dfkt_jax.losses import classification, information, reduce
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network

UNKNOWN = -1  # the pseudo-label of an image without a class


class State(NamedTuple):
  """A network, and the pseudo-labels of the epoch."""

  train: TrainState
  labels: jax.Array  # i32[rows], of all target images
  epoch: jax.Array  # i32[], relabelings since the first


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array
  cross_entropy: jax.Array
  entropy: jax.Array
  marginal_entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class SHOT:
  """Hyper-parameters; the defaults are the paper's for objects."""

  label_weight: Annotated[float, NonNegative] = 0.3  # beta; 0 is SHOT-IM
  diversity_weight: Annotated[float, NonNegative] = 1.0  # of H(mean p)
  # A class needs more predictions than this to have a centroid.
  threshold: Annotated[int, NonNegative] = 0
  # Epochs without the term of the labels (released: 1 for VisDA).
  label_warmup: Annotated[int, NonNegative] = 0
  open_set: bool = False  # the target has other classes too

  recipe: ClassVar[Recipe] = Recipe(classifier_rate=0.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, and pseudo-labels from its predictions."""
    labels = self.label(context.predictions)
    return State(context.recipe.init(context.teacher), labels, jnp.int32(0))

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with the pseudo-labels of a new epoch."""
    labels = self.label(context.predictions)
    return State(state.train, labels, state.epoch + 1)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step down the loss."""
    recipe, batch = context.recipe, context.batch
    augment_key, dropout_key = jax.random.split(key)
    images = recipe.augment(augment_key, batch.images)
    labels = feature_bank.read(state.labels, batch.rows)
    network = state.train.network

    def loss(params):
      logits, variables = net.train_logits(
        network.with_params(params), images, dropout_key
      )
      info = self.loss(logits, labels, state.epoch)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    train = recipe.update(state.train, gradient, variables)
    return state._replace(train=train), info

  def loss(
    self, logits: jax.Array, labels: jax.Array, epoch: jax.Array
  ) -> Info:
    """Return the loss of f32[batch, classes] logits.

    Args:
      labels: i32[batch] pseudo-labels, or UNKNOWN.
      epoch: i32[], compared with `label_warmup`.
    """
    known = labels != UNKNOWN
    cross_entropies = classification.cross_entropy(logits, labels)
    cross_entropy = reduce.mean(cross_entropies, known)
    entropy = reduce.mean(information.entropy(logits), known)
    marginal = information.marginal_entropy(logits)
    weight = jnp.where(epoch < self.label_warmup, 0.0, self.label_weight)
    total = weight * cross_entropy + entropy - self.diversity_weight * marginal
    # Without a known image only the term of the mean would be left.
    total = jnp.where(known.any(), total, 0.0)
    return Info(total, cross_entropy, entropy, marginal)

  def label(self, predictions: Predictions) -> jax.Array:
    """Return pseudo-labels i32[rows]; UNKNOWN for padding and unsure images."""
    known = predictions.valid
    if self.open_set:
      known &= sure(predictions.logits, predictions.valid)
    labels = pseudo_labels(
      predictions.features,
      jax.nn.softmax(predictions.logits),
      known,
      self.threshold,
    )
    return jnp.where(known, labels, UNKNOWN)

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.train.network
