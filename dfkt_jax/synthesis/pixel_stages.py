"""Pixels descend in stages, each with an optimiser and a schedule of its own.

A stage sees the pixels at one size, so its step is one program; what changes
shapes on the way is a list of stages that share one state (`contract.stages`).
Each begins as if it were alone, but for the pixels: Adam's moments, the warm-up
and the cosine begin anew, and so does the best snapshot, for losses of two
sizes do not compare.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax.loops import choose
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch

if TYPE_CHECKING:
  from dfkt_jax.synthesis.deep_inversion import DeepInversion


class State(NamedTuple):
  images: jax.Array  # f32[batch, height, width, channels], not clipped
  labels: jax.Array  # i32[batch]
  opt_state: optax.OptState  # of the normalised images
  best_images: jax.Array  # like images
  best_loss: jax.Array  # f32[]
  step: jax.Array  # i32[], steps of this batch so far


@dataclasses.dataclass(frozen=True)
class Stage:
  """A synthesizer: its method for a stretch of a batch's steps, at one size.

  A state comes to `step` after `first` steps and goes on after `steps` more.
  """

  method: "DeepInversion"
  first: int = 0  # steps of the batch before this stage
  steps: int = 0  # of this stage; a constant rate does not ask
  shrink: int = 1  # the networks see pixels averaged in squares of this side

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    return self.method.init(key, teacher, student)

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    return self.method.sample(key, state, batch_size)

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Any]:
    """One Adam step on the normalised images."""
    method = self.method
    x = teacher.spec.normalise(state.images)
    optimizer = self.optimizer()
    opt_state, best_loss = state.opt_state, state.best_loss
    if self.first:
      begin = (optimizer.init(x), jnp.float32(jnp.inf))
      opt_state, best_loss = choose(
        state.step == self.first, begin, (opt_state, best_loss)
      )
    gradient, info = method.gradient(
      key, x, state.labels, teacher, student, self.shrink
    )
    updates, opt_state = optimizer.update(gradient, opt_state)
    images = teacher.spec.denormalise(x + updates)  # type: ignore
    if method.clip:
      images = jnp.clip(images, 0.0, 1.0)
    # The loss is that of the images before this step.
    better = info.loss < best_loss
    best_images = jnp.where(better, state.images, state.best_images)
    best_loss = jnp.where(better, info.loss, best_loss)
    state = State(
      images, state.labels, opt_state, best_images, best_loss, state.step + 1
    )
    return state, info

  def optimizer(self) -> optax.GradientTransformation:
    """Of normalised images; every stage's state is alike."""
    method = self.method
    return optax.adam(self.rate, b1=method.beta1, b2=method.beta2)

  def rate(self, count: jax.typing.ArrayLike) -> jax.Array:
    """The learning rate after `count`, i32[], steps of this stage, f32[]."""
    method, count = self.method, jnp.asarray(count)
    rate = jnp.float32(method.image_lr)
    if method.image_warmup:
      rate *= jnp.minimum(1.0, (count + 1) / method.image_warmup)
    if method.image_schedule == "cosine":
      falling = max(1, self.steps - method.image_warmup)
      share = jnp.clip((count - method.image_warmup) / falling, 0.0, 1.0)
      rate *= 0.5 * (1.0 + jnp.cos(jnp.pi * share))
    return rate
