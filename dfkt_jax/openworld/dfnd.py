"""DFND: the images of a pool that the teacher is surest of.

  score(x) = -CE(T(x), argmax T(x))                       the highest are taken

Its learner allows for wrong labels: `distillation.noise_adaptation`.

Source: Chen et al., "Learning Student Networks in the Wild", CVPR 2021. The
defaults are the paper's, which takes 600,000 images of ImageNet at 32x32; the
released code does not run.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from dfkt_jax.contracts import Scores, Selection
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class DFND:
  """Chooses the most confident images; it has no hyper-parameters."""

  learner: ClassVar = NoiseAdaptation()
  recipe: ClassVar[Recipe] = Recipe(
    steps=40_000, batch_size=512, student_steps=5
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """Select the lowest cross-entropies with the teacher's own decision."""
    index = np.argsort(-scores.confidence, kind="stable")[:count]
    return Selection(index, np.log(scores.confidence[index]))
