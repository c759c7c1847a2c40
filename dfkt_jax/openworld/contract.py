"""What an open-world method is.

Real images of another kind, unlabelled, take the place of synthesised ones. The
teacher looks at all of them once; the method selects some, and then learns from
batches of those. Like a synthesis method it is a frozen dataclass of
hyper-parameters with pure methods; only `select` and `summarise` run on the
host.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from dfkt_jax.distillation.kd import KD
from dfkt_jax.network import Network
from dfkt_jax.openworld.scoring import Scores
from dfkt_jax.openworld.selection import Selection

State = Any  # a NamedTuple or flax struct of arrays, checkpointed as it is
Info = Any  # a NamedTuple of f32 scalars, for the log


@dataclasses.dataclass(frozen=True)
class Study:
  """How a student learns from a selection."""

  kd: KD = KD(lr=0.1, weight_decay=5e-4, crop_padding=4, flip=True)
  batch_size: int = 128  # selected images of one student step
  student_steps: int = 5  # a round

  @property
  def rounds(self) -> int:
    return -(-self.kd.steps // self.student_steps)


@runtime_checkable
class OpenWorld(Protocol):
  """Selects from a pool of unlabelled images and learns from the selection.

  A method may also have

    study: the `Study` recipe of its paper (else the default);
    summarise(rng, scores, selection) -> arrays: what it keeps of the teacher's
      look at the selection, on the host, for `init`;
    adversary_step(key, state, images, teacher) -> (State, Info): once at the
      start of every round, on a batch of its own;
    sample(key, state, count) -> f32[count, ...]: images it makes itself, of
      which the student sees as many as of real ones.
  """

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """`count` images of the pool, on the host."""
    ...

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network,
    kd: KD,
    summary: Any,
  ) -> State:
    """The state before the first step; `summary`: None without `summarise`."""
    ...

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    teacher: Network,
    kd: KD,
  ) -> tuple[State, Info]:
    """One student step on f32[batch, height, width, channels] in [0, 1]."""
    ...

  def student(self, state: State) -> Network:
    """The student as it is."""
    ...
