"""AdaContrast: labels by a vote of neighbours, and contrast with a queue.

  y_i = argmax_k of the mean prediction of the 10 images nearest to w_i
  L   = CE(q, y) - H(mean p(q))
        - mean_i log e^{q_i k_i / T} / (e^{q_i k_i / T} + sum_j e^{q_i z_j / T})

Chen et al., "Contrastive Test-Time Adaptation", CVPR 2022, equations 2 to 9.
w is a weak view, q and k are strong ones (`augment.strong`). Keys k and all
that is kept for later come from a momentum network, whose parameters follow the
student's, th' <- .999 th' + .001 th; its BatchNorm follows its own inputs, as
released. z are keys of earlier batches in a queue, those alone that had another
label than y_i. Features have length 1. Both networks begin as the source, the
queue and its labels at random.

Neighbours are looked for among all target images by cosine, an image itself
included, in banks of the momentum network's answers to weak views; each batch
is written after its own vote. Deviations: banks begin with the source's answers
to images as they are, in released code to weak views; rows are overwritten by
image and not first in, first out; dropout, which the paper's networks do not
have, acts on q alone.

The defaults are released code's for VisDA. Its weak view is a crop and a mirror
image: --crop-padding and --flip, the latter for strong views as well. For
digits ours are no mirror images, `smallest_crop` 0.7, `label_weight` 0.3 (the
source's labels are poor) and, for a few hundred steps, `momentum_decay` 0.99.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.adaptation import banks
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.losses.classification import cross_entropy
from dfkt_jax.losses.contrastive import contrast
from dfkt_jax.losses.relation import normalise
from dfkt_jax.network import Network


class Queue(NamedTuple):
  keys: jax.Array  # f32[queue_size, width], of length 1
  labels: jax.Array  # i32[queue_size]


class State(NamedTuple):
  learner: Learner
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
  """Hyper-parameters; defaults are released code's for VisDA."""

  neighbours: int = 10  # that vote
  momentum_decay: float = 0.999  # of the momentum network
  queue_size: int = 16_384  # keys
  contrast_temperature: float = 0.07  # T
  label_weight: float = 1.0
  contrast_weight: float = 1.0
  diversity_weight: float = 1.0  # of H(mean p)
  smallest_crop: float = 0.2  # of a strong view, share of the image
  colour: float = 0.4  # strength of a strong view's colour jitter
  grey: float = 0.2  # share of strong views without colour
  blur: float = 0.5  # share of strong views that are blurred

  course: ClassVar[Course] = Course(
    batch_size=128, lr=2e-3, schedule="cosine", weight_decay=1e-4
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    keys_key, labels_key = jax.random.split(key)
    shape = (self.queue_size, answers.features.shape[1])
    queue = Queue(
      normalise(jax.random.normal(keys_key, shape)),
      jax.random.randint(labels_key, shape[:1], 0, source.spec.classes),
    )
    return State(
      course.init(source),
      source,
      normalise(answers.features),
      jax.nn.softmax(answers.logits),
      answers.valid,
      parallel.split(queue),
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    keys = jax.random.split(key, 4)
    weak = course.augment(keys[0], batch.images)
    query, other = (
      self.strong(k, batch.images, course.flip) for k in keys[1:3]
    )
    student, momentum = state.learner.network, state.momentum
    logits, features, student = _answer(student, weak)
    labels = self.vote(features, state)
    overruled = (labels != logits.argmax(1)).mean()
    _, own, momentum = _answer(momentum, other)

    def loss(params):
      logits, taps, variables = net.train_features(
        student.with_params(params), query, keys[3]
      )
      queries = normalise(taps["penultimate"])
      info = self.loss(logits, queries, own, labels, state.queue)
      return info.loss, (variables, info._replace(overruled=overruled))

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(student.params)
    learner = course.update(state.learner, gradient, variables)
    logits, features, momentum = _answer(momentum, weak)
    state = state._replace(
      features=banks.write(state.features, batch.rows, features),
      predictions=banks.write(
        state.predictions, batch.rows, jax.nn.softmax(logits)
      ),
      queue=self.push(state.queue, own, labels, state.learner.step),
      learner=learner,
      momentum=self.follow(momentum, learner.network),
    )
    return state, info

  def strong(self, key: jax.Array, images: jax.Array, flip: bool) -> jax.Array:
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
    """i32[batch], the labels of f32[batch, width] features of length 1."""
    near = banks.nearest(
      features, state.features, self.neighbours, valid=state.valid
    )
    mean = banks.read(state.predictions, near).mean(1)
    return mean.argmax(1).astype(jnp.int32)

  def loss(
    self,
    logits: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    labels: jax.Array,
    queue: Queue,
  ) -> Info:
    """Of f32[batch, classes] logits and f32[batch, width] rows of length 1."""
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
    labelled = cross_entropy(logits, labels)
    marginal = information.marginal_entropy(logits)
    total = (
      self.label_weight * labelled
      + self.contrast_weight * contrasted
      - self.diversity_weight * marginal
    )
    return Info(total, labelled, contrasted, marginal, jnp.float32(0.0))

  def push(
    self, queue: Queue, keys: jax.Array, labels: jax.Array, step: jax.Array
  ) -> Queue:
    """The queue with a batch in place of its oldest."""
    # A batch larger than the queue would overwrite itself.
    count = min(len(keys), self.queue_size)
    rows = (step * count + jnp.arange(count)) % self.queue_size
    return Queue(
      banks.write(queue.keys, rows, keys[:count]),
      banks.write(queue.labels, rows, labels[:count]),
    )

  def follow(self, momentum: Network, student: Network) -> Network:
    """The momentum network, its parameters a little nearer to the student's."""
    move = lambda slow, fast: fast + self.momentum_decay * (slow - fast)
    return momentum.with_params(
      jax.tree.map(move, momentum.params, student.params)
    )

  def network(self, state: State) -> Network:
    return state.learner.network


def _answer(network, images):
  """Logits, features of length 1, and the network with BatchNorm moved on."""
  logits, taps, variables = net.train_features(network, images, None)
  moved = dataclasses.replace(network, variables=variables)
  features = normalise(taps["penultimate"])
  return jax.lax.stop_gradient((logits, features, moved))
