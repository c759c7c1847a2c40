"""AdaContrast: labels by a vote of neighbors, and contrast with a queue.

  y_i = argmax_k of the mean prediction of the 10 images nearest to w_i
  L   = CE(q, y) - H(mean p(q))
        - mean_i log e^{q_i k_i / T} / (e^{q_i k_i / T} + sum_j e^{q_i z_j / T})

Chen et al., "Contrastive Test-Time Adaptation", CVPR 2022, equations 2 to 9.
w is a weak view, q and k are strong views (`augment.strong`). The keys k and
everything in the banks come from a momentum network. Its parameters th' follow
those of the student, th' <- .999 th' + .001 th; its BatchNorm follows its own
inputs, as released. z are the keys of earlier batches in a queue, but only
those with a label other than y_i. Features have length 1. Both networks start
as the source; the queue and its labels start at random.

Neighbors are looked up among all target images by cosine, the image itself
included, in banks of what the momentum network predicts for weak views. Each
batch is written after its own vote. Deviations: the banks start from the
source's predictions for images as they are, in released code for weak views;
rows are overwritten by image, there first in, first out; dropout, which the
paper's networks do not have, acts only on q.

The defaults are those of released code for VisDA. There a weak view is a crop
and a mirror image: set --crop-padding and --flip, of which the latter applies
to strong views too. For digits we use no mirror images, `smallest_crop` 0.7,
`label_weight` 0.3 (the source's labels are poor) and, for a few hundred steps,
`momentum_decay` 0.99.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import (
  Context,
  NonNegative,
  Positive,
  PositiveShare,
  Share,
)
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import information
from dfkt_jax.losses.classification import cross_entropy
from dfkt_jax.losses.contrastive import contrast
from dfkt_jax.losses.relation import normalize
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network


class Queue(NamedTuple):
  """Keys of earlier batches."""

  keys: jax.Array  # f32[queue_size, width], of length 1
  labels: jax.Array  # i32[queue_size]


class State(NamedTuple):
  """Both networks, the banks and the queue."""

  train: TrainState  # the student
  momentum: Network
  features: jax.Array  # f32[rows, width], of length 1
  predictions: jax.Array  # f32[rows, classes]
  valid: jax.Array  # bool[rows]
  queue: Queue


class Info(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array
  cross_entropy: jax.Array
  contrast: jax.Array
  marginal_entropy: jax.Array
  overruled: jax.Array  # share of decisions that the vote changes


@dataclasses.dataclass(frozen=True)
class AdaContrast:
  """Hyper-parameters; the defaults are those of released code for VisDA."""

  neighbours: Annotated[int, Positive] = 10  # that vote
  momentum_decay: Annotated[float, Share] = 0.999  # of the momentum network
  queue_size: Annotated[int, Positive] = 16_384  # keys
  contrast_temperature: Annotated[float, Positive] = 0.07  # T
  label_weight: Annotated[float, NonNegative] = 1.0
  contrast_weight: Annotated[float, NonNegative] = 1.0
  diversity_weight: Annotated[float, NonNegative] = 1.0  # of H(mean p)
  # Smallest area of a strong view, as a share of the image.
  smallest_crop: Annotated[float, PositiveShare] = 0.2
  # Strength of a strong view's color jitter.
  colour: Annotated[float, NonNegative] = 0.4
  grey: Annotated[float, Share] = 0.2  # share of strong views without color
  blur: Annotated[float, Share] = 0.5  # share of strong views that are blurred

  recipe: ClassVar[Recipe] = Recipe(
    batch_size=128, lr=2e-3, schedule="cosine", weight_decay=1e-4
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Return two copies of the source, its banks and a random queue."""
    source, predictions = context.teacher, context.predictions
    keys_key, labels_key = jax.random.split(key)
    shape = (self.queue_size, predictions.features.shape[1])
    queue = Queue(
      normalize(jax.random.normal(keys_key, shape)),
      jax.random.randint(labels_key, shape[:1], 0, source.spec.classes),
    )
    return State(
      context.recipe.init(source),
      source,
      normalize(predictions.features),
      jax.nn.softmax(predictions.logits),
      predictions.valid,
      shard(queue),
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Train the student on a batch, then update momentum, banks and queue."""
    recipe, batch = context.recipe, context.batch
    keys = jax.random.split(key, 4)
    weak = recipe.augment(keys[0], batch.images)
    query, other = (
      self.strong(k, batch.images, recipe.flip) for k in keys[1:3]
    )
    student, momentum = state.train.network, state.momentum
    logits, features, student = _predict(student, weak)
    labels = self.vote(features, state)
    overruled = (labels != student.spec.task.decisions(logits)).mean()
    _, own, momentum = _predict(momentum, other)

    def loss(params):
      logits, taps, variables = net.train_features(
        student.with_params(params), query, keys[3]
      )
      queries = normalize(taps["penultimate"])
      info = self.loss(logits, queries, own, labels, state.queue)
      return info.loss, (variables, info._replace(overruled=overruled))

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(student.params)
    train = recipe.update(state.train, gradient, variables)
    logits, features, momentum = _predict(momentum, weak)
    state = state._replace(
      features=feature_bank.write(state.features, batch.rows, features),
      predictions=feature_bank.write(
        state.predictions, batch.rows, jax.nn.softmax(logits)
      ),
      queue=self.push(state.queue, own, labels, state.train.step),
      train=train,
      momentum=self.follow(momentum, train.network),
    )
    return state, info

  def strong(self, key: jax.Array, images: jax.Array, flip: bool) -> jax.Array:
    """Return a strong view of every image."""
    return augment.strong(
      key,
      images,
      smallest_crop=self.smallest_crop,
      colour=self.colour,
      grey=self.grey,
      blur=self.blur,
      flip=flip,
    )

  def vote(self, features: jax.Array, state: State) -> jax.Array:
    """Return labels i32[batch] for f32[batch, width] features of length 1."""
    near = feature_bank.nearest(
      features, state.features, self.neighbours, valid=state.valid
    )
    mean = feature_bank.read(state.predictions, near).mean(1)
    return mean.argmax(1).astype(jnp.int32)

  def loss(
    self,
    logits: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    labels: jax.Array,
    queue: Queue,
  ) -> Info:
    """Return the loss terms; `overruled` is 0.

    Args:
      logits: f32[batch, classes], of the queries.
      queries: f32[batch, width], of length 1.
      keys: f32[batch, width], of length 1, the queries' own.
      labels: i32[batch].
    """
    own = jnp.zeros((len(labels), 1 + self.queue_size), bool).at[:, 0].set(True)
    others = labels[:, None] != queue.labels[None]
    similarity = jnp.concatenate(
      [(queries * keys).sum(1, keepdims=True), queries @ queue.keys.T], 1
    )
    contrasted = contrast(
      similarity,
      own,
      jnp.pad(others, ((0, 0), (1, 0))),
      self.contrast_temperature,
    ).mean()
    labeled = cross_entropy(logits, labels).mean()
    marginal = information.marginal_entropy(logits)
    total = (
      self.label_weight * labeled
      + self.contrast_weight * contrasted
      - self.diversity_weight * marginal
    )
    return Info(total, labeled, contrasted, marginal, jnp.float32(0.0))

  def push(
    self, queue: Queue, keys: jax.Array, labels: jax.Array, step: jax.Array
  ) -> Queue:
    """Return the queue with a batch in place of its oldest keys.

    Args:
      step: i32[], batches pushed so far.
    """
    # A batch larger than the queue would overwrite itself.
    count = min(len(keys), self.queue_size)
    rows = (step * count + jnp.arange(count)) % self.queue_size
    return Queue(
      feature_bank.write(queue.keys, rows, keys[:count]),
      feature_bank.write(queue.labels, rows, labels[:count]),
    )

  def follow(self, momentum: Network, student: Network) -> Network:
    """Return the momentum network, its parameters nearer to the student's."""
    move = lambda slow, fast: fast + self.momentum_decay * (slow - fast)
    return momentum.with_params(
      jax.tree.map(move, momentum.params, student.params)
    )

  def network(self, state: State) -> Network:
    """Return the student as it is."""
    return state.train.network


def _predict(network, images):
  """Return logits, features of length 1 and the network with moved BatchNorm.

  All are constants to the gradient.
  """
  logits, taps, variables = net.train_features(network, images, None)
  moved = dataclasses.replace(network, variables=variables)
  features = normalize(taps["penultimate"])
  return jax.lax.stop_gradient((logits, features, moved))
