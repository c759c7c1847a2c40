"""NOTELA: a student with dropout follows a teacher that averages neighbors.

  L = - mean_i sum_c y_ic log q_ic
  y_i ~ p_i^(1/a) exp(l / a  sum_j w_ij p_j / sum_j w_ij)

Boudiaf et al., "In Search for a Generalizable Method for Source Free Domain
Adaptation", ICML 2023. q is the student, with dropout and with BatchNorm on
batch statistics; p is the same network with neither, a constant to the
gradient. w_ij is 1 where images i and j are each among the other's nearest by
Euclidean distance of their features, and 0 elsewhere: a Laplacian over the
target. An image without such a neighbor keeps p^(1/a). As a goes to 0, y goes
to the one best class.

Only BatchNorm's scales and biases move. In a network without dropout the
student has no noise, and only the neighbors teach.

The defaults are those of released code for images (perch): 15 neighbors, of
which the image itself is the first, so that 14 are others; l = 2; a = 1; the
teacher of a batch is made in its step, from banks with every image's latest
predictions. `online=False` makes the teacher at the start of every epoch, for
all images at once, as released code does for sounds (5 neighbors, l = 1).
`laplacian_weight=0, softness=0.1` is the paper's Dropout Student.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.ada_bn import require_batch_norm
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Positive
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import information, reduce
from dfkt_jax.losses.classification import soft_cross_entropy
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network, Task

CHUNK = 1024  # images whose neighbors are looked up together


class State(NamedTuple):
  """The student, and banks of the teacher with a row for every image."""

  train: TrainState
  features: jax.Array  # f32[rows, width]
  logits: jax.Array  # f32[rows, classes]
  targets: jax.Array | None  # f32[rows, classes]; None: made in the step
  valid: jax.Array  # bool[rows]


class Info(NamedTuple):
  """The loss, and figures of the teacher."""

  loss: jax.Array
  teacher_entropy: jax.Array  # of y; the lower bound of the loss
  moved: jax.Array  # share of images whose top class differs in y and q


@dataclasses.dataclass(frozen=True)
class NOTELA:
  """Hyper-parameters; the defaults are those of released code for images."""

  # Number of nearest images, the image itself included.
  neighbours: Annotated[int, Positive] = 15
  laplacian_weight: Annotated[float, NonNegative] = 2.0  # l
  # a; with 0 the teacher names one class.
  softness: Annotated[float, NonNegative] = 1.0
  mutual: bool = True  # use only neighbors that are each other's neighbors
  online: bool = True  # make the teacher in every step, not in every epoch

  recipe: ClassVar[Recipe] = Recipe(
    epochs=10,
    optimizer="adam",
    lr=1e-4,
    schedule="constant",
    weight_decay=0.0,
    backbone_rate=1.0,
    trained="norm",
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, and banks of its features and logits.

    Raises:
      UsageError: the source has no BatchNorm.
    """
    require_batch_norm(context.teacher, "notela")
    predictions = context.predictions
    state = State(
      context.recipe.init(context.teacher),
      predictions.features,
      predictions.logits,
      None,
      predictions.valid,
    )
    return state if self.online else self.teach_all(state)

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with the teacher of a new epoch; the same if online."""
    if self.online:
      return state
    predictions = context.predictions
    return self.teach_all(
      state._replace(features=predictions.features, logits=predictions.logits)
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step of the student towards the teacher."""
    recipe, batch = context.recipe, context.batch
    augment_key, dropout_key = jax.random.split(key)
    images = recipe.augment(augment_key, batch.images)
    network = state.train.network
    if state.targets is None:
      logits, taps = net.features(network, images)
      state = state._replace(
        features=feature_bank.write(
          state.features, batch.rows, taps["penultimate"]
        ),
        logits=feature_bank.write(state.logits, batch.rows, logits),
      )
      targets = self.teach(state, batch.rows)
    else:
      targets = feature_bank.read(state.targets, batch.rows)

    def loss(params):
      logits, variables = net.train_logits(
        network.with_params(params), images, dropout_key
      )
      info = self.loss(network.spec.task, logits, targets)
      return info.loss, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(network.params)
    train = recipe.update(state.train, gradient, variables)
    return state._replace(train=train), info

  def loss(self, task: Task, logits: jax.Array, targets: jax.Array) -> Info:
    """Return the loss of the student's logits against the teacher's y.

    Both are f32[batch, classes]. `task` is the student's.
    """
    cross_entropy = soft_cross_entropy(logits, targets).mean()
    moved = (task.decisions(logits) != task.decisions(targets)).mean()
    # The floor is for y = 0. Terms that small do not matter.
    entropies = information.entropy(jnp.log(jnp.maximum(targets, 1e-30)))
    return Info(cross_entropy, entropies.mean(), moved)

  def teach(self, state: State, rows: jax.Array) -> jax.Array:
    """Return y of the images with i32[n] rows, f32[n, classes]."""
    points = _center(state.features, state.valid)
    near = self._nearest(points, rows, state.valid)
    theirs = None
    if self.mutual:
      theirs = self._nearest(points, near.reshape(-1), state.valid)
      theirs = theirs.reshape(*near.shape, -1)
    return self._targets(state, rows, near, theirs)

  def teach_all(self, state: State) -> State:
    """Return the state with y of all images, each looked up only once."""
    points, rows = _center(state.features, state.valid), len(state.valid)
    size = min(CHUNK, rows)
    chunks = jnp.arange(-(-rows // size) * size).reshape(-1, size) % rows
    join = lambda x: shard(x.reshape(-1, *x.shape[2:])[:rows])
    near = join(
      jax.lax.map(lambda r: self._nearest(points, r, state.valid), chunks)
    )

    def teach(rows):
      mine = feature_bank.read(near, rows)
      theirs = feature_bank.read(near, mine) if self.mutual else None
      return self._targets(state, rows, mine, theirs)

    return state._replace(targets=join(jax.lax.map(teach, chunks)))

  def _nearest(self, points, rows, valid):
    """Return the rows of the other nearest images, i32[n, neighbours - 1]."""
    # |x - y|^2 is least where x.y - |y|^2 / 2 is largest.
    half = 0.5 * jnp.square(points).sum(1, keepdims=True)
    queries = feature_bank.read(points, rows)
    return feature_bank.nearest(
      jnp.concatenate([queries, jnp.ones((len(rows), 1))], 1),
      jnp.concatenate([points, -half], 1),
      self.neighbours - 1,
      own=rows,
      valid=valid,
    )

  def _targets(self, state, rows, near, theirs):
    """Return y from the neighbors of rows, and the neighbors' neighbors.

    Args:
      near: i32[n, neighbours - 1].
      theirs: i32[n, neighbours - 1, neighbours - 1]; None: all count.
    """
    # With fewer images than neighbors, the lists end with -1.
    weights = feature_bank.read(state.valid, near)
    if theirs is not None:
      weights &= (theirs == rows[:, None, None]).any(-1)
    weights = weights.astype(jnp.float32)
    p = jax.nn.softmax(feature_bank.read(state.logits, near))
    mean = jnp.einsum("bk,bkc->bc", weights, p)
    mean /= jnp.maximum(weights.sum(1, keepdims=True), 1.0)
    own = jax.nn.log_softmax(feature_bank.read(state.logits, rows))
    return sharpen(own + self.laplacian_weight * mean, self.softness)

  def network(self, state: State) -> Network:
    """Return the student as it is."""
    return state.train.network


def sharpen(scores: jax.Array, softness: float) -> jax.Array:
  """Return softmax(scores / softness); at 0 the best classes share equally."""
  if softness:
    return jax.nn.softmax(scores / softness)
  best = (scores == scores.max(1, keepdims=True)).astype(jnp.float32)
  return best / best.sum(1, keepdims=True)


def _center(features, valid):
  """Subtract the mean, which keeps distances and saves digits of f32."""
  return features - reduce.mean(features, valid)[None]
