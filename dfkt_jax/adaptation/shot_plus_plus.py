"""SHOT++: SHOT with a rotation task, then sure labels teach the unsure images.

  1. L = CE(h([f(x), f(x_r)]), r),   only the head h learns
  2. L = L_SHOT + a CE(h([sg f(x), f(x_r)]), r)
  3. L = CE(x', y') on sure images + u t mean (p(x') - y')^2 on unsure ones

Liang et al., "Source Data-absent Unsupervised Domain Adaptation through
Hypothesis Transfer and Labeling Transfer", TPAMI 2021. x_r is the image turned
by r quarters, f the input of the classifier, sg stops the gradient, h is a
linear layer. L_SHOT is that of `shot`. The classifier stays until stage 3,
which begins with a fresh one. The last iterate counts; released code selects by
lowest entropy.

Stage 3 is MixMatch (`mixmatch`). Each image has two views, predicted in
training mode. Both views of all images are mixed with others by one weight
w >= 1/2 of Beta(alpha, alpha); t is the share of the stage that is done. The
two halves of the result go through BatchNorm one after the other.

The split into sure and unsure images is made at the relabeling before stage 3
(or at the start), so up to an epoch before it. Learning rates fall over each
stage's own steps; that of the head falls over the first two stages together.

a, alpha and u are 0.6, 0.75 and 100 for objects; a is 0.2 and alpha 0.1 for
digits (released settings). The shares of the stages are 15, 15 and 10 epochs of
VisDA. Deviations:
  - A batch has sure and unsure images as they come. Released code draws the
    same number of each.
  - A sure image has two views in a batch, in released code one.
  - The rates of stages 2 and 3 are the same.
  - Stage 1 too normalizes by the batch.

The views of stage 3 are predicted in all stages, and ignored in the first two:
on CPU a branch with convolutions is slower than the saving.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.adaptation import mixmatch, shot
from dfkt_jax.adaptation.mixmatch import Split
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.contracts import Context, NonNegative, Positive, Share
from dfkt_jax.devices.loops import select
from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import UsageError
from dfkt_jax.losses.classification import cross_entropy
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network, layers

HEAD, FEATURES, TRANSFER = 0, 1, 2  # stages


class State(NamedTuple):
  """The state of SHOT, the rotation head and the split."""

  shot: shot.State  # its train state is the only one, through all stages
  head: dict[str, jax.Array]  # of the rotations
  head_state: Any  # of its optimizer
  split: Split


class Info(NamedTuple):
  """Loss terms before weighting; 0 in stages that do not have them."""

  loss: jax.Array
  cross_entropy: jax.Array
  entropy: jax.Array
  marginal_entropy: jax.Array
  rotation: jax.Array
  unlabelled: jax.Array
  stage: jax.Array  # 0 to 2


@dataclasses.dataclass(frozen=True)
class SHOTPlusPlus:
  """Hyper-parameters; defaults for objects, with VisDA's shares and rate."""

  # Share of the steps, the first ones, in which only the head learns.
  head_share: Annotated[float, Share] = 0.375
  # Share of the steps, the last ones, with MixMatch.
  transfer_share: Annotated[float, Share] = 0.25
  # beta of SHOT; 0 is SHOT-IM++.
  label_weight: Annotated[float, NonNegative] = 0.3
  diversity_weight: Annotated[float, NonNegative] = 1.0  # of H(mean p)
  # A class needs more predictions than this to have a centroid.
  threshold: Annotated[int, NonNegative] = 0
  rotation_weight: Annotated[float, NonNegative] = 0.6  # a
  mixup_alpha: Annotated[float, Positive] = 0.75  # alpha
  unlabelled_weight: Annotated[float, NonNegative] = 100.0  # u
  sharpening_temperature: Annotated[float, Positive] = 0.5

  recipe: ClassVar[Recipe] = Recipe(epochs=40, lr=1e-3)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the state of SHOT, a fresh head and the split of the source.

    Raises:
      UsageError: the shares exceed 1, or images are not square.
    """
    spec, predictions = context.teacher.spec, context.predictions
    if self.head_share + self.transfer_share > 1.0:
      raise UsageError(
        f"--head-share {self.head_share} and --transfer-share"
        f" {self.transfer_share} are more than the whole: give at most 1"
        " together"
      )
    if spec.height != spec.width:
      raise UsageError(
        "shot++ turns images by quarters and these are"
        f" {spec.height}x{spec.width}: use square ones"
      )
    xavier = nn.initializers.xavier_normal()
    head = {
      "kernel": xavier(key, (2 * predictions.features.shape[1], 4)),
      "bias": jnp.zeros(4),
    }
    head_state = self._head_optimizer(context.recipe).init(head)
    begun = self._shot.init(key, context)
    split = mixmatch.split(predictions, spec.task)
    return State(begun, head, head_state, split)

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with new labels, and a new split before stage 3."""
    begun = state.shot.train.step > self._starts(context.recipe)[TRANSFER]
    task = context.teacher.spec.task
    fresh = mixmatch.split(context.predictions, task)
    return state._replace(
      shot=self._shot.relabel(key, state.shot, context),
      split=select(begun, state.split, fresh),
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step down the loss of the stage."""
    recipe, batch = context.recipe, context.batch
    keys = jax.random.split(key, 9)
    stage = self.stage(state.shot.train, recipe)
    train = self._begin(keys[0], state.shot.train, recipe)
    network, rows = train.network, batch.rows
    views = [recipe.augment(k, batch.images) for k in keys[1:3]]
    turns = jax.random.randint(keys[3], (len(rows),), 0, 4)
    turned = augment.quarter_turns(views[0], turns)
    mine = Split(
      feature_bank.read(state.split.sure, rows),
      feature_bank.read(state.split.labels, rows),
    )
    guesses, guessed = _predict(network, views, keys[4:6])
    targets = mixmatch.targets(mine, guesses, self.sharpening_temperature)
    twice = lambda x: jnp.concatenate([x, x])
    mixed, targets = augment.mixup(
      keys[6],
      shard((jnp.concatenate(views), twice(targets))),
      self.mixup_alpha,
      own_first=True,
    )
    transfer = stage == TRANSFER
    network = select(transfer, guessed, network)
    halves = [
      select(transfer, *pair)
      for pair in zip(jnp.split(mixed, 2), (views[0], turned))
    ]
    labels = feature_bank.read(state.shot.labels, rows)
    done = self._done(train, recipe)

    def loss(params, head):
      outputs, features, moved = _forward(
        network.with_params(params), halves, keys[7:]
      )
      turning = rotation_loss(head, features, turns)
      clustering = self._shot.loss(outputs[0], labels, state.shot.epoch)
      mixing = mixmatch.loss(
        jnp.concatenate(outputs),
        targets,
        twice(mine.sure),
        self.unlabelled_weight * done,
      )
      info = self._info(stage, turning, clustering, mixing)
      return info.loss, (moved.variables, info)

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      network.params, state.head
    )
    train = self._update(stage, train, gradients[0], variables, recipe)
    moves, head_state = self._head_optimizer(recipe).update(
      gradients[1], state.head_state, state.head
    )
    head = optax.apply_updates(state.head, moves)
    # Stage 3 does not train the head.
    head, head_state = select(
      transfer, (state.head, state.head_state), (head, head_state)
    )
    begun = state.shot._replace(train=train)
    return State(begun, head, head_state, state.split), info

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.shot.train.network

  def stage(self, train: TrainState, recipe: Recipe) -> jax.Array:
    """Return the stage of the next step, i32[]."""
    starts = jnp.array(self._starts(recipe)[1:])
    return (train.step >= starts).sum()

  @property
  def _shot(self):
    return SHOT(self.label_weight, self.diversity_weight, self.threshold)

  def _starts(self, recipe):
    """Return the first step of every stage."""
    transfer = recipe.steps - round(self.transfer_share * recipe.steps)
    head = min(round(self.head_share * recipe.steps), transfer)
    return 0, head, transfer

  def _stage_recipe(self, recipe, stage):
    """Return the recipe of one stage, over whose steps the rate falls."""
    starts = *self._starts(recipe), recipe.steps
    steps = starts[stage + 1] - starts[stage]
    return dataclasses.replace(recipe, steps=max(steps, 1))

  def _head_optimizer(self, recipe):
    steps = max(self._starts(recipe)[TRANSFER], 1)
    return dataclasses.replace(recipe, steps=steps).make_optimizer()

  def _done(self, train, recipe):
    """Return the share of stage 3 that is done, f32[]."""
    start = self._starts(recipe)[TRANSFER]
    steps = self._stage_recipe(recipe, TRANSFER).steps
    return jnp.clip((train.step - start) / steps, 0.0, 1.0)

  def _begin(self, key, train, recipe):
    """Return the train state, with a fresh classifier where stage 3 begins."""

    def restart():
      network = train.network
      fresh = net.init(key, network.module, network.spec).params
      network = _with_classifier(network, fresh)
      return TrainState(network, recipe.init(network).opt_state, train.step)

    now = train.step == self._starts(recipe)[TRANSFER]
    return jax.lax.cond(now, restart, lambda: train)

  def _update(self, stage, train, gradient, variables, recipe):
    """Return the train state after the step that the stage takes."""
    old = train.network

    def head():
      return train._replace(step=train.step + 1)

    def features():
      now = self._stage_recipe(recipe, FEATURES)
      new = now.update(train, gradient, variables)
      return new._replace(network=_with_classifier(new.network, old.params))

    def transfer():
      now = self._stage_recipe(recipe, TRANSFER)
      return now.update(train, gradient, variables)

    return jax.lax.switch(stage, [head, features, transfer])

  def _info(self, stage, turning, clustering, mixing):
    """Return those of the three losses that the stage has."""
    has = lambda *stages: jnp.stack([stage == s for s in stages]).any()
    only = lambda value, *stages: jnp.where(has(*stages), value, 0.0)
    clustered = clustering.loss + self.rotation_weight * turning
    labeled = jnp.where(
      stage == TRANSFER, mixing.labeled, clustering.cross_entropy
    )
    return Info(
      loss=only(turning, HEAD)
      + only(clustered, FEATURES)
      + only(mixing.loss, TRANSFER),
      cross_entropy=only(labeled, FEATURES, TRANSFER),
      entropy=only(clustering.entropy, FEATURES),
      marginal_entropy=only(clustering.marginal_entropy, FEATURES),
      rotation=only(turning, HEAD, FEATURES),
      unlabelled=only(mixing.unlabeled, TRANSFER),
      stage=stage.astype(jnp.float32),
    )


def rotation_loss(
  head: dict[str, jax.Array],
  features: list[jax.Array],
  turns: jax.Array,
) -> jax.Array:
  """Return the mean cross-entropy of the head, f32[].

  Args:
    features: f32[batch, width] of plain images, constants to the gradient, and
      of turned images.
    turns: i32[batch], in quarters.
  """
  plain, turned = features
  pair = jnp.concatenate([jax.lax.stop_gradient(plain), turned], 1)
  logits = pair @ head["kernel"] + head["bias"][None]
  return cross_entropy(logits, turns).mean()


def _predict(network, views, keys):
  """Return logits of every view in training mode, and the network after it.

  All are constants to the gradient.
  """
  logits, _, network = _forward(network, views, keys)
  return jax.lax.stop_gradient((logits, network))


def _forward(network, batches, keys):
  """Run batches one after another, each on its own BatchNorm statistics.

  Returns:
    Logits and features of every batch, and the network with the BatchNorm
    statistics after the last one.
  """
  outputs, features = [], []
  for images, key in zip(batches, keys):
    logits, taps, variables = net.train_features(network, images, key)
    outputs.append(logits)
    features.append(taps["penultimate"])
    network = dataclasses.replace(network, variables=variables)
  return outputs, features, network


def _with_classifier(network, params):
  """Return the network with the last layer of other parameters."""
  choose = lambda part, own, other: other if part == layers.CLASSIFIER else own
  return network.with_params(
    jax.tree.map(choose, layers.parts(network), network.params, params)
  )
