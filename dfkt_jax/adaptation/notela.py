"""NOTELA: a student with dropout follows a teacher that asks the neighbours.

  L = - mean_i sum_c y_ic log q_ic
  y_i ~ p_i^(1/a) exp(l / a  sum_j w_ij p_j / sum_j w_ij)

Boudiaf et al., "In Search for a Generalizable Method for Source Free Domain
Adaptation", ICML 2023. q is the student, dropout on and BatchNorm on the batch;
p the same network with neither, a constant to the gradient. w_ij is 1 where
images i and j are each among the other's nearest by Euclidean distance of their
features, else 0: a Laplacian over the target. An image with no such neighbour
keeps p^(1/a). As a goes to 0, y goes to the one best class.

Only BatchNorm's scales and biases move. In a network without dropout the
student has no noise, and the neighbours alone teach.

The defaults are released code's for images (perch): 15 neighbours of which an
image is itself the first, so that 14 are others; l = 2; a = 1; the teacher of a
batch is made in its step, from banks that hold every image's last answers.
`online=False` makes it at the start of every epoch, for all images at once, as
there for sounds (5 neighbours, l = 1). `laplacian_weight=0, softness=0.1` is
its Dropout Student.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax import parallel
from dfkt_jax.adaptation import banks
from dfkt_jax.adaptation.ada_bn import require_batch_norm
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.network import Network

CHUNK = 1024  # images whose neighbours are looked for together


class State(NamedTuple):
  learner: Learner
  features: jax.Array  # f32[rows, width], of the teacher
  logits: jax.Array  # f32[rows, classes], likewise
  targets: jax.Array | None  # f32[rows, classes]; None: made in the step
  valid: jax.Array  # bool[rows]


class Info(NamedTuple):
  loss: jax.Array
  teacher_entropy: jax.Array  # of y: what the loss cannot go below
  moved: jax.Array  # share of images whose top class differs in y and q


@dataclasses.dataclass(frozen=True)
class NOTELA:
  """Hyper-parameters; defaults are released code's for images."""

  neighbours: int = 15  # nearest images, the image itself included
  laplacian_weight: float = 2.0  # l
  softness: float = 1.0  # a; 0: the teacher names one class
  mutual: bool = True  # only neighbours that are so to each other
  online: bool = True  # make the teacher in every step, not every epoch

  course: ClassVar[Course] = Course(
    epochs=10,
    optimizer="adam",
    lr=1e-4,
    schedule="constant",
    weight_decay=0.0,
    backbone_rate=1.0,
    trained="norm",
  )

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    require_batch_norm(source, "notela")
    state = State(
      course.init(source),
      answers.features,
      answers.logits,
      None,
      answers.valid,
    )
    return state if self.online else self._teach_all(state)

  def relabel(
    self, key: jax.Array, state: State, answers: Answers, course: Course
  ) -> State:
    if self.online:
      return state
    return self._teach_all(
      state._replace(features=answers.features, logits=answers.logits)
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    augment_key, dropout_key = jax.random.split(key)
    images = course.augment(augment_key, batch.images)
    network = state.learner.network
    if state.targets is None:
      logits, taps = net.features(network, images)
      state = state._replace(
        features=banks.write(state.features, batch.rows, taps["penultimate"]),
        logits=banks.write(state.logits, batch.rows, logits),
      )
      targets = self.teach(state, batch.rows)
    else:
      targets = banks.read(state.targets, batch.rows)

    def loss(params):
      logits, variables = net.train_logits(
        network.with_params(params), images, dropout_key
      )
      info = self.loss(logits, targets)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    learner = course.update(state.learner, gradient, variables)
    return state._replace(learner=learner), info

  def loss(self, logits: jax.Array, targets: jax.Array) -> Info:
    """Of f32[batch, classes] student's logits and teacher's predictions."""
    cross_entropy = -(targets * jax.nn.log_softmax(logits)).sum(1).mean()
    moved = (logits.argmax(1) != targets.argmax(1)).mean()
    # Of log y the lowest matter to nobody, and log 0 would.
    entropy = information.entropy(jnp.log(jnp.maximum(targets, 1e-30)))
    return Info(cross_entropy, entropy, moved)

  def teach(self, state: State, rows: jax.Array) -> jax.Array:
    """y of the images with i32[count] rows, f32[count, classes]."""
    places = _places(state.features, state.valid)
    near = self._nearest(places, rows, state.valid)
    theirs = None
    if self.mutual:
      theirs = self._nearest(places, near.reshape(-1), state.valid)
      theirs = theirs.reshape(*near.shape, -1)
    return self._ask(state, rows, near, theirs)

  def _teach_all(self, state):
    """The state with y of all images; each is looked for once."""
    places, rows = _places(state.features, state.valid), len(state.valid)
    size = min(CHUNK, rows)
    chunks = jnp.arange(-(-rows // size) * size).reshape(-1, size) % rows
    whole = lambda x: parallel.split(x.reshape(-1, *x.shape[2:])[:rows])
    near = whole(
      jax.lax.map(lambda r: self._nearest(places, r, state.valid), chunks)
    )

    def ask(rows):
      mine = banks.read(near, rows)
      theirs = banks.read(near, mine) if self.mutual else None
      return self._ask(state, rows, mine, theirs)

    return state._replace(targets=whole(jax.lax.map(ask, chunks)))

  def _nearest(self, places, rows, valid):
    """i32[count, neighbours - 1]."""
    # |x - y|^2 is least where x.y - |y|^2 / 2 is largest.
    half = 0.5 * jnp.square(places).sum(1, keepdims=True)
    queries = banks.read(places, rows)
    return banks.nearest(
      jnp.concatenate([queries, jnp.ones((len(rows), 1))], 1),
      jnp.concatenate([places, -half], 1),
      self.neighbours - 1,
      own=rows,
      valid=valid,
    )

  def _ask(self, state, rows, near, theirs):
    # Where there are fewer images than neighbours, -1 fills the list.
    weights = banks.read(state.valid, near)
    if theirs is not None:
      weights &= (theirs == rows[:, None, None]).any(-1)
    weights = weights.astype(jnp.float32)
    p = jax.nn.softmax(banks.read(state.logits, near))
    mean = jnp.einsum("bk,bkc->bc", weights, p)
    mean /= jnp.maximum(weights.sum(1, keepdims=True), 1.0)
    own = jax.nn.log_softmax(banks.read(state.logits, rows))
    return sharpen(own + self.laplacian_weight * mean, self.softness)

  def network(self, state: State) -> Network:
    return state.learner.network


def sharpen(scores: jax.Array, softness: float) -> jax.Array:
  """softmax(scores / softness); at 0 the best share all equally."""
  if softness:
    return jax.nn.softmax(scores / softness)
  best = (scores == scores.max(1, keepdims=True)).astype(jnp.float32)
  return best / best.sum(1, keepdims=True)


def _places(features, valid):
  """About their mean, which keeps distances and the digits of f32."""
  return features - information.mean(features, valid)[None]
