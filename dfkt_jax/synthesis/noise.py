"""Noise: images of independent pixels, the baseline of every method."""

import dataclasses
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context, Positive, unlabelled
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe


class State(NamedTuple):
  blank: jax.Array  # f32[height, width, channels], for its shape
  mean: jax.Array  # f32[channels]
  std: jax.Array  # f32[channels]


class Info(NamedTuple):
  confidence: jax.Array  # the teacher's mean top probability on the noise


@dataclasses.dataclass(frozen=True)
class Noise:
  """Independent pixels, uniform or Gaussian with the moments of the input."""

  # images of one step, for the log alone
  synthesis_batch_size: Annotated[int, Positive] = 64
  distribution: Literal["uniform", "gaussian"] = "uniform"  # of pixels

  recipe: ClassVar[Recipe] = Recipe(
    steps=80_000, synthesis_steps=1, student_steps=10
  )
  learner: ClassVar[KD] = KD(lr=0.1, temperature=1.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the shape and the moments of the teacher's input."""
    spec = context.teacher.spec
    return State(
      jnp.zeros(spec.shape), jnp.asarray(spec.mean), jnp.asarray(spec.std)
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Return the same state, and how sure the teacher is of new noise."""
    images = self.sample(key, state, self.synthesis_batch_size).images
    probabilities = jax.nn.softmax(net.logits(context.teacher, images))
    return state, Info(probabilities.max(1).mean())

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return `count` images of new noise, without a class."""
    shape = (count, *state.blank.shape)
    if self.distribution == "uniform":
      images = shard(jax.random.uniform(key, shape))
    else:
      noise = shard(jax.random.normal(key, shape))
      full = (None, None, None)
      images = jnp.clip(state.mean[full] + state.std[full] * noise, 0.0, 1.0)
    return unlabelled(images)
