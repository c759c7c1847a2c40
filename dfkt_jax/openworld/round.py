"""The round of an open-world method: its adversary's step, then the student's.

Batches come from the host, several at once, as 8-bit images.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.distillation.transfer import STUDENT, SYNTHESIS, stream
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network
from dfkt_jax.openworld.contract import OpenWorld, Study


def batches_per_round(method: OpenWorld, study: Study) -> int:
  return study.student_steps + hasattr(method, "adversary_step")


def make_round(
  method: OpenWorld, study: Study, loops: Loops
) -> Callable[[Any, Any, jax.Array, Network, jax.Array], tuple[Any, dict]]:
  """round(state, index, key, teacher, batches) -> (state, infos).

  `batches` is u8[batches_per_round, batch, height, width, channels], the last
  the adversary's; `state` is donated. `infos` has "distillation" and, with an
  adversary, "synthesis".
  """

  def student_step(state, step, key, teacher, batches, first):
    images = _images(batches[step - first])
    return method.step(
      stream(key, STUDENT, step), state, images, teacher, study.kd
    )

  def adversary_step(state, index, key, teacher, batches):
    key = stream(key, SYNTHESIS, index)
    images = _images(batches[-1])
    return method.adversary_step(key, state, images, teacher)  # type: ignore

  learn = loops.repeat(student_step, study.student_steps)
  play = loops.repeat(adversary_step, 1)

  def openworld_round(state, index, key, teacher, batches):
    infos = {}
    if hasattr(method, "adversary_step"):
      state, infos["synthesis"] = play(state, index, key, teacher, batches)
    first = index * study.student_steps
    state, infos["distillation"] = learn(
      state, first, key, teacher, batches, first
    )
    return state, infos

  return loops.whole(openworld_round)


def _images(batch):
  return parallel.split(batch.astype(jnp.float32) / 255)
