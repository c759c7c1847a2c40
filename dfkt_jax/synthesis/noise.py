"""Noise images: the floor that every method has to beat."""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax import parallel
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch, unlabelled


class State(NamedTuple):
  blank: jax.Array  # f32[height, width, channels], for its shape
  mean: jax.Array  # f32[channels]
  std: jax.Array  # f32[channels]


class Info(NamedTuple):
  confidence: jax.Array  # the teacher's mean top probability on the noise


@dataclasses.dataclass(frozen=True)
class Noise:
  """Independent pixels, uniform or Gaussian with the moments of the input."""

  synthesis_batch_size: int = 64  # images a step looks at, for the log alone
  distribution: Literal["uniform", "gaussian"] = "uniform"

  transfer: ClassVar[Transfer] = Transfer(
    kd=KD(steps=80_000, lr=0.1, temperature=1.0),
    synthesis_steps=1,
    student_steps=10,
  )

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    spec = teacher.spec
    return State(
      jnp.zeros(spec.shape), jnp.asarray(spec.mean), jnp.asarray(spec.std)
    )

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """Learns nothing; reports how sure the teacher is."""
    images = self.sample(key, state, self.synthesis_batch_size).images
    probabilities = jax.nn.softmax(net.logits(teacher, images))
    return state, Info(probabilities.max(1).mean())

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    shape = (batch_size, *state.blank.shape)
    if self.distribution == "uniform":
      images = parallel.split(jax.random.uniform(key, shape))
    else:
      noise = parallel.split(jax.random.normal(key, shape))
      full = (None, None, None)
      images = jnp.clip(state.mean[full] + state.std[full] * noise, 0.0, 1.0)
    return unlabelled(images)
