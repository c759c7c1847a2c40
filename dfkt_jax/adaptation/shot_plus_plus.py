"""SHOT++: SHOT with a rotation task, then its sure labels teach the unsure.

  1. L = CE(h([f(x), f(x_r)]), r),   only the head h learns
  2. L = L_SHOT + a CE(h([sg f(x), f(x_r)]), r)
  3. L = CE(x', y') on the sure + u t mean (p(x') - y')^2 on the unsure

Liang et al., "Source Data-absent Unsupervised Domain Adaptation through
Hypothesis Transfer and Labeling Transfer", TPAMI 2021. x_r is the image turned
by r quarters, f what the classifier is given, sg stops the gradient, h a linear
layer. L_SHOT is `shot`'s: the classifier stays until stage 3, which begins with
a fresh one. The last iterate counts; released code picks by lowest entropy.

Stage 3 is MixMatch (Berthelot et al., NeurIPS 2019). The sure images are, of
every predicted class, those of lowest entropy, a share that is the share of all
images with less than the mean entropy; y is what the network says of them. Of
the others y is the mean prediction of two views, made in training mode, raised
to 1 / temperature. Both views of all are mixed with others by one weight
w >= 1/2 of Beta(alpha, alpha); t is the share of the stage that is done. The
two halves of what comes out go through BatchNorm one after the other.

The split is made at the relabelling before stage 3 (or at the start), so up to
an epoch before it. Learning rates fall over each stage's own steps, the head's
over the first two together.

a, alpha and u: 0.6, 0.75 and 100 for objects; a 0.2 and alpha 0.1 for digits
(released settings). Shares of the stages are VisDA's 15, 15 and 10 epochs.
Deviations: a batch has sure and unsure images as they come, where released
code draws as many of either, and a sure image has two views in it, there one;
rates of stage 2 and 3 are the same; stage 1 normalises by the batch too.

The views of stage 3 are predicted in all stages and ignored in the first two:
a branch with convolutions in it is slower on CPU than what it saves.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, parallel, tails
from dfkt_jax import network as net
from dfkt_jax.adaptation import banks, shot
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import CLASSIFIER, Course, Learner
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import choose
from dfkt_jax.losses import information
from dfkt_jax.losses.classification import cross_entropy
from dfkt_jax.network import Network

HEAD, FEATURES, TRANSFER = 0, 1, 2  # stages


class Split(NamedTuple):
  sure: jax.Array  # bool[rows]
  labels: jax.Array  # i32[rows], the network's own


class State(NamedTuple):
  shot: shot.State  # its learner is the only one, through all stages
  head: dict[str, jax.Array]  # of the rotations
  head_state: Any  # of its optimiser
  split: Split


class Mixing(NamedTuple):
  loss: jax.Array
  labelled: jax.Array
  unlabelled: jax.Array  # before weighting


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
  """Hyper-parameters; defaults are for objects, shares and rate for VisDA."""

  head_share: float = 0.375  # of the steps, in which the head alone learns
  transfer_share: float = 0.25  # of the steps, the last ones: MixMatch
  label_weight: float = 0.3  # beta of SHOT; 0 is SHOT-IM++
  diversity_weight: float = 1.0  # of H(mean p)
  threshold: int = 0  # classes with no more predictions have no centroid
  rotation_weight: float = 0.6  # a
  mixup_alpha: float = 0.75  # alpha
  unlabelled_weight: float = 100.0  # u
  sharpening_temperature: float = 0.5

  course: ClassVar[Course] = Course(epochs=40, lr=1e-3)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    if self.head_share + self.transfer_share > 1.0:
      raise UsageError(
        f"--head-share {self.head_share} and --transfer-share"
        f" {self.transfer_share} are more than the whole: give at most 1"
        " together"
      )
    if source.spec.height != source.spec.width:
      raise UsageError(
        "shot++ turns images by quarters and these are"
        f" {source.spec.height}x{source.spec.width}: use square ones"
      )
    xavier = nn.initializers.xavier_normal()
    head = {
      "kernel": xavier(key, (2 * answers.features.shape[1], 4)),
      "bias": jnp.zeros(4),
    }
    begun = self._shot.init(key, source, answers, course)
    return State(
      begun, head, self._head_optimizer(course).init(head), split(answers)
    )

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    begun = state.shot.learner.step > self._starts(course)[TRANSFER]
    return state._replace(
      shot=self._shot.relabel(key, state.shot, answers, course),
      split=choose(begun, state.split, split(answers)),
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    keys = jax.random.split(key, 9)
    stage = self.stage(state.shot.learner, course)
    learner = self._begin(keys[0], state.shot.learner, course)
    network, rows = learner.network, batch.rows
    views = [course.augment(k, batch.images) for k in keys[1:3]]
    turns = jax.random.randint(keys[3], (len(rows),), 0, 4)
    turned = augment.quarter_turns(views[0], turns)
    mine = Split(
      banks.read(state.split.sure, rows), banks.read(state.split.labels, rows)
    )
    guesses, guessed = _predict(network, views, keys[4:6])
    targets = self.targets(mine, guesses)
    twice = lambda x: jnp.concatenate([x, x])
    mixed, targets = augment.mixup(
      keys[6],
      parallel.split((jnp.concatenate(views), twice(targets))),
      self.mixup_alpha,
      own_first=True,
    )
    transfer = stage == TRANSFER
    network = choose(transfer, guessed, network)
    halves = [
      choose(transfer, *pair)
      for pair in zip(jnp.split(mixed, 2), (views[0], turned))
    ]
    labels = banks.read(state.shot.labels, rows)
    done = self._done(learner, course)

    def loss(params, head):
      outputs, features, moved = _forward(
        network.with_params(params), halves, keys[7:]
      )
      turning = _rotation(head, features, turns)
      clustering = self._shot.loss(outputs[0], labels, state.shot.epoch)
      mixing = self.mixing_loss(
        jnp.concatenate(outputs), targets, twice(mine.sure), done
      )
      info = self._info(stage, turning, clustering, mixing)
      return info.loss, (moved.variables, info)

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      network.params, state.head
    )
    learner = self._update(stage, learner, gradients[0], variables, course)
    moves, head_state = self._head_optimizer(course).update(
      gradients[1], state.head_state, state.head
    )
    head = optax.apply_updates(state.head, moves)
    # In stage 3 it is left alone.
    head, head_state = choose(
      transfer, (state.head, state.head_state), (head, head_state)
    )
    begun = state.shot._replace(learner=learner)
    return State(begun, head, head_state, state.split), info

  def targets(self, split: Split, guesses: list[jax.Array]) -> jax.Array:
    """f32[batch, classes]: the labels of the sure, sharpened guesses else."""
    p = jax.nn.softmax(jnp.stack(guesses)).mean(0)
    sharp = jnp.power(p, 1.0 / self.sharpening_temperature)
    sharp /= sharp.sum(1, keepdims=True)
    hard = jax.nn.one_hot(split.labels, p.shape[1])
    return jnp.where(split.sure[:, None], hard, sharp)

  def mixing_loss(
    self,
    logits: jax.Array,
    targets: jax.Array,
    sure: jax.Array,
    done: jax.Array,
  ) -> Mixing:
    """MixMatch's, of f32[batch, classes]; `done` is the share of stage 3."""
    own = -(targets * jax.nn.log_softmax(logits)).sum(1)
    labelled = information.mean(own, sure)
    squared = jnp.square(jax.nn.softmax(logits) - targets).mean(1)
    unlabelled = information.mean(squared, ~sure)
    total = labelled + self.unlabelled_weight * done * unlabelled
    return Mixing(total, labelled, unlabelled)

  def network(self, state: State) -> Network:
    return state.shot.learner.network

  def stage(self, learner: Learner, course: Course) -> jax.Array:
    """i32[], the stage of the learner's next step."""
    starts = jnp.array(self._starts(course)[1:])
    return (learner.step >= starts).sum()

  @property
  def _shot(self):
    return SHOT(self.label_weight, self.diversity_weight, self.threshold)

  def _starts(self, course):
    """The first step of every stage."""
    transfer = course.steps - round(self.transfer_share * course.steps)
    head = min(round(self.head_share * course.steps), transfer)
    return 0, head, transfer

  def _stage_course(self, course, stage):
    """Its rate falls over the steps of one stage."""
    starts = *self._starts(course), course.steps
    steps = starts[stage + 1] - starts[stage]
    return dataclasses.replace(course, steps=max(steps, 1))

  def _head_optimizer(self, course):
    steps = max(self._starts(course)[TRANSFER], 1)
    return dataclasses.replace(course, steps=steps).make_optimizer()

  def _done(self, learner, course):
    start = self._starts(course)[TRANSFER]
    steps = self._stage_course(course, TRANSFER).steps
    return jnp.clip((learner.step - start) / steps, 0.0, 1.0)

  def _begin(self, key, learner, course):
    """The learner, with a fresh classifier where stage 3 begins."""

    def restart():
      network = learner.network
      fresh = net.init(key, network.module, network.spec).params
      network = _with_classifier(network, fresh)
      return Learner(network, course.init(network).opt_state, learner.step)

    now = learner.step == self._starts(course)[TRANSFER]
    return jax.lax.cond(now, restart, lambda: learner)

  def _update(self, stage, learner, gradient, variables, course):
    old = learner.network

    def head():
      return learner._replace(step=learner.step + 1)

    def features():
      now = self._stage_course(course, FEATURES)
      new = now.update(learner, gradient, variables)
      return new._replace(network=_with_classifier(new.network, old.params))

    def transfer():
      now = self._stage_course(course, TRANSFER)
      return now.update(learner, gradient, variables)

    return jax.lax.switch(stage, [head, features, transfer])

  def _info(self, stage, turning, clustering, mixing):
    """What the stage has of the three losses."""
    has = lambda *stages: jnp.stack([stage == s for s in stages]).any()
    only = lambda value, *stages: jnp.where(has(*stages), value, 0.0)
    clustered = clustering.loss + self.rotation_weight * turning
    labelled = jnp.where(
      stage == TRANSFER, mixing.labelled, clustering.cross_entropy
    )
    return Info(
      loss=only(turning, HEAD)
      + only(clustered, FEATURES)
      + only(mixing.loss, TRANSFER),
      cross_entropy=only(labelled, FEATURES, TRANSFER),
      entropy=only(clustering.entropy, FEATURES),
      marginal_entropy=only(clustering.marginal_entropy, FEATURES),
      rotation=only(turning, HEAD, FEATURES),
      unlabelled=only(mixing.unlabelled, TRANSFER),
      stage=stage.astype(jnp.float32),
    )


def split(answers: Answers) -> Split:
  """The sure images of every predicted class, and what they are taken for."""
  valid, logits = answers.valid, answers.logits
  count, classes = logits.shape
  entropy = information.entropies(logits)
  low = entropy < information.mean(entropy, valid)
  share = information.mean(low.astype(jnp.float32), valid)
  labels = jnp.where(valid, logits.argmax(1), classes).astype(jnp.int32)
  # By class, then by entropy; padding is a class of its own, the last.
  order = jnp.lexsort((entropy, labels))
  sizes = jnp.zeros(classes + 1, jnp.int32).at[labels].add(1)
  starts = jnp.cumsum(sizes) - sizes
  place = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count))
  rank = place - starts[labels]
  sure = valid & (rank < share * sizes[labels])
  return parallel.split(Split(sure, jnp.where(valid, labels, 0)))


def _predict(network, views, keys):
  """What it says of every view in training mode, and the network after it."""
  logits, _, network = _forward(network, views, keys)
  return jax.lax.stop_gradient((logits, network))


def _forward(network, batches, keys):
  """Batches one after the other, each on its own BatchNorm statistics."""
  outputs, features = [], []
  for images, key in zip(batches, keys):
    logits, taps, variables = net.train_features(network, images, key)
    outputs.append(logits)
    features.append(taps["penultimate"])
    network = dataclasses.replace(network, variables=variables)
  return outputs, features, network


def _rotation(head, features, turns):
  """The head's loss, given features of plain and of turned images."""
  plain, turned = features
  pair = jnp.concatenate([jax.lax.stop_gradient(plain), turned], 1)
  return cross_entropy(pair @ head["kernel"] + head["bias"][None], turns)


def _with_classifier(network, params):
  """The network with the last layer of these parameters."""
  choose = lambda part, own, other: other if part == CLASSIFIER else own
  return network.with_params(
    jax.tree.map(choose, tails.parts(network), network.params, params)
  )
