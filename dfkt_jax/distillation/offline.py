"""Offline: the source of images is a transfer set on disk.

The images are there already, such as those that `dfkt synthesize` wrote, with
labels and soft labels where they were stored. Batches go through the whole set
in a new order every epoch, and any learner learns from them.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
whose student learns from a transfer set.
"""

import dataclasses
from typing import ClassVar

from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Offline:
  """Marks a stored transfer set as the source; it has no hyper-parameters."""

  learner: ClassVar = KD()
  recipe: ClassVar[Recipe] = Recipe(batch_size=256, student_steps=20)
