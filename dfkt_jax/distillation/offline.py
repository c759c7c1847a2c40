"""Offline distillation: a student learns from a transfer set on disk.

  L = D(T(x), S(x)) + w_hard CE(S(x), y)

as `kd` says, over images x that are there already, such as those that `dfkt
synthesize` wrote; T(x) is the teacher's answer, or the soft label that is
stored with x.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
whose transfer set is what the student learns from. Batches go through the whole
set in a new order every epoch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.distillation import kd as distillation
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import STUDENT, stream
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch


@dataclasses.dataclass(frozen=True)
class Offline:
  """How a student learns from a transfer set."""

  kd: KD = KD()
  batch_size: int = 256

  def step(
    self,
    key: jax.Array,
    state: distillation.State,
    step: jax.Array,
    batch: Batch,
    teacher: Network,
  ) -> tuple[distillation.State, distillation.Info]:
    """Student step number `step`; past the last one nothing is learnt.

    Args:
      key: the run's, not the step's.
      batch: its images are u8[batch, height, width, channels].
    """
    batch = parallel.split(batch)
    images = batch.images.astype(jnp.float32) / 255
    new, info = self.kd.step(
      stream(key, STUDENT, step), state, batch._replace(images=images), teacher
    )
    learns = step < self.kd.steps
    return jax.tree.map(lambda a, b: jnp.where(learns, a, b), new, state), info
