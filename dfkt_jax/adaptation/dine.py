"""DINE: a network learns from a black box's predictions for the target.

  L = KL(M_i || p_i) + mean H(p) - H(mean p) + KL(sg(p') || p(x'))
  (x', p') = w (x, p) + (1 - w) (x, p) of another image,   w ~ Beta(.3, .3)

Liang et al., "DINE: Domain Adaptation from Single and Multiple Black-box
Predictors", CVPR 2022. M is a memory of the source's predictions, which are
requested once: the `kept_classes` largest probabilities stay, and the other
classes share the rest evenly. Ten times over the distillation it absorbs the
predictions of the new network, M <- .6 M + .4 p. The last `tuning_share` of the
steps has only the two middle terms. There is one w for a batch; sg marks a
constant to the gradient.

The weights of the source are never read. This file uses only the source's
predictions, the shape and the normalization of its images, its classes and,
unless `arch` names one, its architecture, with freshly drawn weights. `dfkt
adapt` also requests the source's predictions, to start with and to compare
accuracies; but target/bn_drift, which is only logged, does compare BatchNorm
with that of the source.

Deviations:
  - The paper's network starts from ImageNet weights, and all but its head
    learns at a tenth of the rate. Ours is drawn at random, so --backbone-rate
    is 1.
  - The paper's rate falls with exponent 1.5, ours by `poly` with 0.75, over
    both stages.
  - The paper updates M between steps, we at the start of an epoch, so at most
    once an epoch.
  - The paper stops tuning once decisions settle. Ours lasts a quarter of the
    steps (our choice), after 30 epochs.
  - BatchNorm's running statistics do not see mixed images, as released code
    intends but does not do.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment, models
from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Positive, Share
from dfkt_jax.losses import information
from dfkt_jax.losses.classification import kl_from_probabilities
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network


class State(NamedTuple):
  """The new network, and the memory that teaches it."""

  train: TrainState
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
  """Hyper-parameters; the defaults are those of released code, Office-Home."""

  arch: str = ""  # of the new network, see 'dfkt list archs'; "": the source's
  # r, the number of probabilities of the source that are kept.
  kept_classes: Annotated[int, Positive] = 1
  # Share of itself that M keeps in an update.
  memory_momentum: Annotated[float, Share] = 0.6
  memory_updates: Annotated[int, Positive] = 10  # over the distillation
  information_weight: Annotated[float, NonNegative] = 1.0
  mixup_weight: Annotated[float, NonNegative] = 1.0
  mixup_alpha: Annotated[float, Positive] = 0.3  # of Beta(alpha, alpha)
  tuning_share: Annotated[float, Share] = 0.25  # of the steps, the last ones

  recipe: ClassVar[Recipe] = Recipe(epochs=40, backbone_rate=1.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return a fresh network, and the memory of the source's predictions.

    Raises:
      UsageError: `arch` is not an architecture.
    """
    spec, module = context.teacher.spec, context.teacher.module
    if self.arch:
      module = models.build(self.arch, spec.classes)
    network = net.init(key, module, spec)
    p = jax.nn.softmax(context.predictions.logits)
    train = context.recipe.init(network)
    return State(train, smooth(p, self.kept_classes), jnp.int32(0))

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with the memory updated, if an update is due."""
    share = context.progress / max(1.0 - self.tuning_share, 1e-6)
    # The margin is for the rounding of shares such as a tenth.
    due = jnp.floor(jnp.minimum(share, 1.0) * self.memory_updates + 1e-4)
    due = due.astype(jnp.int32)
    keep = jnp.where(due > state.updates, self.memory_momentum, 1.0)
    p = jax.nn.softmax(context.predictions.logits)
    memory = keep * state.memory + (1.0 - keep) * p
    return State(state.train, memory, jnp.maximum(due, state.updates))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step down the loss of the stage."""
    recipe, batch = context.recipe, context.batch
    keys = jax.random.split(key, 4)
    images = recipe.augment(keys[0], batch.images)
    targets = feature_bank.read(state.memory, batch.rows)
    network = state.train.network
    tuning = context.progress >= 1.0 - self.tuning_share

    def loss(params):
      now = network.with_params(params)
      logits, variables = net.train_logits(now, images, keys[1])
      p = jax.lax.stop_gradient(jax.nn.softmax(logits))
      mixed = augment.mixup(keys[2], (images, p), self.mixup_alpha)
      mixed_logits, _ = net.train_logits(now, mixed[0], keys[3])
      info = self.loss(logits, targets, mixed_logits, mixed[1], tuning)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    train = recipe.update(state.train, gradient, variables)
    return state._replace(train=train), info

  def loss(
    self,
    logits: jax.Array,
    targets: jax.Array,
    mixed_logits: jax.Array,
    mixed_targets: jax.Array,
    tuning: jax.Array,
  ) -> Info:
    """Return the loss terms.

    Arrays are f32[batch, classes], `tuning` is bool[]; targets are
    probabilities.
    """
    distilled = kl_from_probabilities(targets, logits).mean()
    mixed = kl_from_probabilities(mixed_targets, mixed_logits).mean()
    sure = information.information_maximization(logits)
    taught = distilled + self.mixup_weight * mixed
    total = self.information_weight * sure + jnp.where(tuning, 0.0, taught)
    return Info(total, distilled, sure, mixed, tuning.astype(jnp.float32))

  def network(self, state: State) -> Network:
    """Return the new network as it is."""
    return state.train.network


def smooth(p: jax.Array, kept: int) -> jax.Array:
  """Keep the `kept` largest of f32[rows, classes] and even out the rest."""
  classes = p.shape[1]
  if kept >= classes:
    return p
  largest, _ = jax.lax.top_k(p, kept)
  # Among equal probabilities the first count, so that exactly `kept` do.
  rank = jnp.argsort(jnp.argsort(-p, axis=1), axis=1)
  rest = (1.0 - largest.sum(1, keepdims=True)) / (classes - kept)
  return jnp.where(rank < kept, p, jnp.maximum(rest, 0.0))
