"""The steps and batch sizes of a distillation."""

import dataclasses
from typing import Annotated

import jax

from dfkt_jax.contracts import NonNegative, Positive


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings of how a source of images and a learner alternate.

  A round is some steps of synthesis, then some of the student. A generator goes
  on from round to round, and the student learns from fresh samples. With a
  replay buffer, a round makes one batch of images and stores it, and the
  student learns from the buffer. A pool or a stored transfer set needs no
  synthesis.
  """

  steps: Annotated[int, Positive] = 80_000  # of the student, in whole rounds
  batch_size: Annotated[int, Positive] = 256  # images of one student step
  synthesis_steps: Annotated[int, Positive] = 1  # a round, or a stored batch
  student_steps: Annotated[int, Positive] = 10  # a round
  # images in a replay buffer; 0: the student sees fresh samples
  memory_size: Annotated[int, NonNegative] = 0
  warmup_rounds: Annotated[int, NonNegative] = 0  # before the student begins
  offline: bool = False  # fill the replay buffer first, then only learn
