"""AaD: attract what is near, disperse the rest of the batch.

  L = - mean_i sum_k <p_i, s_k> + a_t mean_i sum_{j != i} <p_i, p_j>
  a_t = a_0 (1 + 10 t / T)^(-decay)

Yang et al., "Attracting and Dispersing: A Simple Approach for Source-free
Domain Adaptation", NeurIPS 2022, equations 5 and 6. k runs over the K images
whose features are nearest to image i's by cosine; s are predictions kept in a
bank, constants to the gradient. The second sum runs over the batch, so a_0
means what it says at the paper's batch of 64. Gradients reach both its factors.

Banks are NRC's, are written before neighbours are looked up, and hold features
of which nothing is dropped.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.adaptation import banks, nrc
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.adaptation.nrc import NRC, State
from dfkt_jax.network import Network


class Info(NamedTuple):
  loss: jax.Array
  attraction: jax.Array  # as in the loss, its sign included
  dispersion: jax.Array  # before a_t
  weight: jax.Array  # a_t


@dataclasses.dataclass(frozen=True)
class AaD:
  """Hyper-parameters; defaults are the paper's for VisDA."""

  neighbours: int = 5  # K
  dispersion_weight: float = 1.0  # a_0
  dispersion_decay: float = 5.0  # 0 keeps a_t at a_0

  course: ClassVar[Course] = Course(lr=1e-3)

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    return NRC().init(key, source, answers, course)

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    loss = functools.partial(self.loss, progress=course.progress(state.learner))
    return nrc.descend(key, state, batch, course, loss)

  def loss(
    self, logits: jax.Array, rows: jax.Array, state: State, progress: jax.Array
  ) -> Info:
    """Of f32[batch, classes] logits of images with i32[batch] rows."""
    p = jax.nn.softmax(logits)
    near = banks.nearest(
      banks.read(state.features, rows),
      state.features,
      self.neighbours,
      own=rows,
      valid=state.valid,
    )
    theirs = banks.read(state.predictions, near)
    attraction = -jnp.einsum("bc,bkc->b", p, theirs).mean()
    similarity = p @ p.T
    dispersion = (similarity.sum(1) - jnp.diagonal(similarity)).mean()
    weight = self.dispersion_weight * jnp.power(
      1.0 + 10.0 * progress, -self.dispersion_decay
    )
    total = attraction + weight * dispersion
    return Info(total, attraction, dispersion, weight)

  def network(self, state: State) -> Network:
    return state.learner.network
