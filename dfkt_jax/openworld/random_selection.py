"""Random selection and plain distillation: what every selection has to beat."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from dfkt_jax.distillation.kd import KD, Info, State
from dfkt_jax.network import Network
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.scoring import Scores
from dfkt_jax.openworld.selection import Selection
from dfkt_jax.synthesis.contract import unlabelled


@dataclasses.dataclass(frozen=True)
class RandomSelection:
  """Every image of the pool is as good as any other."""

  study: ClassVar[Study] = Study()

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    index = rng.permutation(len(scores))[:count]
    return Selection(index, scores.confidence[index])

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network,
    kd: KD,
    summary: Any,
  ) -> State:
    return kd.init(student)

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    teacher: Network,
    kd: KD,
  ) -> tuple[State, Info]:
    return kd.step(key, state, unlabelled(images), teacher)

  def student(self, state: State) -> Network:
    return state.student
