"""CoWA-JMDS: labels of a Gaussian mixture, each weighted by how sure it is.

  L = - mean_i w'_i sum_k y'_ik log p_k(x'_i)
  (x', y', w')_i = l_i (x, y, w)_i + (1 - l_i) (x, y, w)_j,   l_i ~ Beta(a, a)

Lee et al., "Confidence Score for Source-Free Unsupervised Domain Adaptation",
ICML 2022: weight mixup, where j is another image of the batch. The loss has no
other term. In every epoch, from features f of length 1 and predictions p:

  g      posteriors of a Gaussian mixture (`mixture`) that has the predictions
         as responsibilities and, for every class, the covariance of all images;
         then of a second mixture that has these posteriors as both
  y_i    argmax_k g_ik
  LPG_i  (largest log g_i - second largest) / the largest such gap of the target
  w_i    LPG_i p_i(y_i), the joint model-data structure score

For `warmup` epochs the loss is multiplied by 1e-6, so that hardly anything
moves but BatchNorm's statistics (and what weight decay moves), as released.

The defaults are those of released code for Office-Home. It uses
`mixup_alpha=2`, `warmup=1` and 15 epochs for VisDA, and `mixup_alpha=1` and
`--lr 1e-3` for DomainNet-126. The learning rate is constant. Deviations:
released code crops and mirrors a batch as a whole, here each image has its own
draw where --crop-padding and --flip ask for it. Where e is too small it is
raised (`mixture`).

The gap of a single image decides how much all others count. Features that are
often 0 (of a network without a bottleneck) have classes with hardly any
variance in many directions, and then nearly all weights are small: raise
`epsilon` and --lr.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.adaptation import mixture
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Positive, Predictions
from dfkt_jax.losses.classification import soft_cross_entropy
from dfkt_jax.losses.relation import normalize
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network

WARMUP_WEIGHT = 1e-6


class State(NamedTuple):
  """A network, and the labels of the epoch."""

  train: TrainState
  labels: jax.Array  # i32[rows], of all target images
  weights: jax.Array  # f32[rows] in [0, 1]
  epoch: jax.Array  # i32[], relabelings since the first


class Info(NamedTuple):
  """The loss and its parts.

  The loss may rise from epoch to epoch, because weights grow with the
  confidence of the predictions.
  """

  loss: jax.Array
  cross_entropy: jax.Array  # unweighted
  weight: jax.Array  # mean w


@dataclasses.dataclass(frozen=True)
class CoWA:
  """Hyper-parameters; the defaults are those of released code, Office-Home."""

  mixup_alpha: Annotated[float, Positive] = 0.2  # a of Beta(a, a)
  # Epochs in which the loss hardly counts.
  warmup: Annotated[int, NonNegative] = 0
  # e, added to the variances of the mixture.
  epsilon: Annotated[float, Positive] = 1e-6

  recipe: ClassVar[Recipe] = Recipe(
    epochs=30, schedule="constant", classifier_rate=0.1
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, with labels and weights from its predictions."""
    labels, weights = self.label(context.predictions)
    train = context.recipe.init(context.teacher)
    return State(train, labels, weights, jnp.int32(0))

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with labels and weights of a new epoch."""
    labels, weights = self.label(context.predictions)
    return State(state.train, labels, weights, state.epoch + 1)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step down the loss on a mixed batch."""
    recipe, batch = context.recipe, context.batch
    augment_key, mix_key, dropout_key = jax.random.split(key, 3)
    network = state.train.network
    labels = feature_bank.read(state.labels, batch.rows)
    plain = (
      recipe.augment(augment_key, batch.images),
      jax.nn.one_hot(labels, network.spec.classes),
      feature_bank.read(state.weights, batch.rows),
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
    train = recipe.update(state.train, gradient, variables)
    return state._replace(train=train), info

  def loss(
    self,
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    epoch: jax.Array,
  ) -> Info:
    """Return the loss of a mixed batch.

    Args:
      logits: f32[batch, classes].
      targets: f32[batch, classes], y'.
      weights: f32[batch], w'.
      epoch: i32[], compared with `warmup`.
    """
    cross_entropies = soft_cross_entropy(logits, targets)
    factor = jnp.where(epoch < self.warmup, WARMUP_WEIGHT, 1.0)
    loss = factor * (weights * cross_entropies).mean()
    return Info(loss, cross_entropies.mean(), weights.mean())

  def label(self, predictions: Predictions) -> tuple[jax.Array, jax.Array]:
    """Return i32[rows] labels y and f32[rows] weights w."""
    p, valid = jax.nn.softmax(predictions.logits), predictions.valid
    features = normalize(predictions.features)
    mask = lambda r: jnp.where(valid[:, None], r, 0.0)
    ones = mask(jnp.ones_like(p))
    first = mixture.log_joint(features, mask(p), ones, self.epsilon)
    posterior = mask(jax.nn.softmax(first))
    joint = mixture.log_joint(features, posterior, posterior, self.epsilon)
    labels = joint.argmax(1).astype(jnp.int32)
    top = jax.lax.top_k(joint, 2)[0]
    gap = jnp.where(valid, top[:, 0] - top[:, 1], 0.0)
    gap /= jnp.maximum(gap.max(), 1e-12)
    return labels, gap * jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.train.network
