"""Random selection: the baseline for every other selection."""

import dataclasses
from typing import ClassVar

import numpy as np

from dfkt_jax.contracts import Scores, Selection
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class RandomSelection:
  """Chooses every image of the pool with the same probability."""

  learner: ClassVar = KD(lr=0.1, weight_decay=5e-4, crop_padding=4, flip=True)
  recipe: ClassVar[Recipe] = Recipe(
    steps=80_000, batch_size=128, student_steps=5
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """Select without replacement; the confidence is kept as the score."""
    index = rng.permutation(len(scores))[:count]
    return Selection(index, scores.confidence[index])
