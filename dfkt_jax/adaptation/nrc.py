"""NRC: neighbours agree, reciprocal ones most.

  L = - mean_i sum_k A_ik <p_i, s_k> - r mean_i sum_k sum_m <p_i, s_m>
      - H(mean p)

Yang et al., "Exploiting the Intrinsic Neighborhood Structure for Source-free
Domain Adaptation", NeurIPS 2021. k runs over the K images whose features are
nearest to image i's by cosine, m over the M nearest to each k (its expanded
neighbours); s are predictions kept in a bank, constants to the gradient. A is 1
where i is among k's nearest, else r = 0.1.

Rows of the batch are written to the banks before neighbours are looked up. An
image is not its own neighbour, but remains among the expanded ones, which
stands in for the paper's self term, as in released code. Deviation: banks begin
with the source's answers to images as they are, in released code to augmented
ones. Nothing is dropped: the paper's networks have no dropout, and features of
which half are zero find other neighbours. `weights="released"` gives every A
the value r, as the released VisDA script does, by a mistake; it is what the
paper's VisDA figure comes from.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation import banks
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course, Learner
from dfkt_jax.losses import information
from dfkt_jax.losses.relation import normalise
from dfkt_jax.network import Network


class State(NamedTuple):
  learner: Learner
  features: jax.Array  # f32[rows, width], of length 1
  predictions: jax.Array  # f32[rows, classes]
  valid: jax.Array  # bool[rows]


class Info(NamedTuple):
  loss: jax.Array
  neighbours: jax.Array  # as in the loss, its sign included
  expanded: jax.Array
  marginal_entropy: jax.Array
  reciprocal: jax.Array  # share of neighbours


@dataclasses.dataclass(frozen=True)
class NRC:
  """Hyper-parameters; defaults are the paper's for VisDA."""

  neighbours: int = 5  # K
  expanded_neighbours: int = 5  # M
  base_affinity: float = 0.1  # r
  diversity_weight: float = 1.0  # of H(mean p)
  weights: Literal["paper", "released"] = "paper"  # what A is

  course: ClassVar[Course] = Course(lr=1e-3)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    return State(
      course.init(source),
      normalise(answers.features),
      jax.nn.softmax(answers.logits),
      answers.valid,
    )

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    return descend(key, state, batch, course, self.loss)

  def loss(self, logits: jax.Array, rows: jax.Array, state: State) -> Info:
    """Of f32[batch, classes] logits of images with i32[batch] rows."""
    p = jax.nn.softmax(logits)
    find = lambda rows, count: banks.nearest(
      banks.read(state.features, rows),
      state.features,
      count,
      own=rows,
      valid=state.valid,
    )
    near = find(rows, self.neighbours)
    further = find(near.reshape(-1), self.expanded_neighbours)
    further = further.reshape(*near.shape, -1)
    reciprocal = (further == rows[:, None, None]).any(-1)
    affinity = jnp.where(reciprocal, 1.0, self.base_affinity)
    if self.weights == "released":
      affinity = jnp.full_like(affinity, self.base_affinity)
    read = lambda rows: banks.read(state.predictions, rows)
    agreement = jnp.einsum("bc,bkc->bk", p, read(near))
    neighbours = -(affinity * agreement).sum(1).mean()
    agreement = jnp.einsum("bc,bkmc->bkm", p, read(further))
    expanded = -self.base_affinity * agreement.sum((1, 2)).mean()
    marginal = information.marginal_entropy(logits)
    total = neighbours + expanded - self.diversity_weight * marginal
    return Info(total, neighbours, expanded, marginal, reciprocal.mean())

  def network(self, state: State) -> Network:
    return state.learner.network


def descend(
  key: jax.Array,
  state: State,
  batch: Batch,
  course: Course,
  loss: Callable[[jax.Array, jax.Array, State], Any],
) -> tuple[State, Any]:
  """A step down loss(logits, rows, state) of the banks with the batch written.

  What `loss` returns is an Info.
  """
  images = course.augment(key, batch.images)
  network = state.learner.network

  def total(params):
    logits, taps, variables = net.train_features(
      network.with_params(params), images, None
    )
    written = write(state, batch.rows, taps["penultimate"], logits)
    info = loss(logits, batch.rows, written)
    return info.loss, (variables, written, info)

  gradient, (variables, written, info) = jax.grad(total, has_aux=True)(
    network.params
  )
  learner = course.update(state.learner, gradient, variables)
  return written._replace(learner=learner), info


def write(state, rows, features, logits):
  """The state with the batch's features and predictions in its banks."""
  features, logits = jax.lax.stop_gradient((features, logits))
  return state._replace(
    features=banks.write(state.features, rows, normalise(features)),
    predictions=banks.write(state.predictions, rows, jax.nn.softmax(logits)),
  )
