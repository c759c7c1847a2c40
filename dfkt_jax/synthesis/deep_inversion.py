"""DeepInversion: pixels optimized until they look like the teacher's data.

  x* = argmin_x  CE(T(x), y)
                 + w_bn sum_l a_l (|mu_l(x) - m_l| + |s2_l(x) - v_l|)
                 + w_tv TV(x) + w_l2 |x| + w_c (1 - JS(T(x), S(x)))

The loss, its symbols and its deviations are in `inversion_loss`; this file is
the optimization of the pixels. With the last term it is Adaptive DeepInversion.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion", CVPR 2020, equations 2-4 and its adaptive variant; CIFAR-10
settings as published, betas, jitter and the first-layer weight as released.
`IMAGENET` has the released settings for 224 pixels.

The released code does not train a student: `recipe` and `learner` are those of
the port in zju-vipa's DataFree (temperature 20, 400 student steps a batch,
crops, flips); the authors name temperature 3.

Pixels are full size throughout. In the first `half_size_share` of a batch's
steps, the networks and the image prior see 2x2 averages of the pixels, jittered
half as far (released, ImageNet). Each of the two stages restarts Adam, its
warm-up and its cosine, and the best snapshot, because losses of two sizes do
not compare.

As released and here: x is in normalized space and CIFAR-10 runs do not clip.
Ours: labels are balanced; the best snapshot is a real copy (the released one
aliases the live images, so that "best" is always the last).
"""

import dataclasses
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax.contracts import (
  Batch,
  Context,
  NonNegative,
  Positive,
  Share,
  Step,
)
from dfkt_jax.devices import loops
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.synthesis import requirements, schedules, targets
from dfkt_jax.synthesis.inversion_loss import Info, InversionLoss
from dfkt_jax.synthesis.subsets import subset

ROUND = 50  # the most steps between two log lines of `dfkt synthesize`


class State(NamedTuple):
  images: jax.Array  # f32[batch, height, width, channels], not clipped
  labels: jax.Array  # i32[batch]
  opt_state: optax.OptState  # of the normalized images
  best_images: jax.Array  # like images
  best_loss: jax.Array  # f32[]
  step: jax.Array  # i32[], steps of this batch so far


@dataclasses.dataclass(frozen=True)
class DeepInversion(InversionLoss):
  """Hyper-parameters; defaults are those for CIFAR-10."""

  # images optimized together
  synthesis_batch_size: Annotated[int, Positive] = 256
  # of Adam, in normalized pixel units (paper, CIFAR)
  image_lr: Annotated[float, NonNegative] = 0.05
  image_schedule: schedules.Schedule = "constant"  # of image_lr
  # steps in which image_lr rises (100 for ImageNet)
  image_warmup: Annotated[int, NonNegative] = 0
  # of Adam (released; 0.5 for ImageNet)
  beta1: Annotated[float, NonNegative] = 0.9
  # of Adam (released; 0.9 for ImageNet)
  beta2: Annotated[float, NonNegative] = 0.999
  clip: bool = False  # keep pixels inside [0, 1] after each step (ImageNet)
  best_snapshot: bool = True  # keep the images of the lowest loss, not the last
  # share of the steps that are at half the size (ImageNet 2/3)
  half_size_share: Annotated[float, Share] = 0.0

  recipe: ClassVar[Recipe] = Recipe(
    steps=80_000, synthesis_steps=2000, student_steps=400, memory_size=51_200
  )
  learner: ClassVar[KD] = KD(
    lr=0.1, temperature=20.0, crop_padding=4, flip=True
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Draw unit Gaussian pixels and balanced labels.

    Raises:
      UsageError: the networks or the batch do not fit the settings.
    """
    self.require(context, self.synthesis_batch_size)
    if self.half_size_share:
      for network in self.networks(context):
        requirements.require_half_size(network, self.half_size_share)
    teacher = context.teacher
    noise_key, label_key = jax.random.split(key)
    shape = (self.synthesis_batch_size, *teacher.spec.shape)
    x = shard(jax.random.normal(noise_key, shape))
    labels = targets.balanced(label_key, shape[0], teacher.spec.classes)
    opt_state = shard(self._optimizer(steps=1).init(x))
    images = teacher.spec.denormalize(x)
    # A copy: two fields of a state that is donated must not share a buffer.
    best_images = jnp.copy(images)
    return State(
      images,
      labels,
      opt_state,
      best_images,
      best_loss=jnp.float32(jnp.inf),
      step=jnp.int32(0),
    )

  def stages(self, steps: int) -> list[tuple[Step, int]]:
    """Return the step at half the size and the one at full size.

    Each comes with its number of the `steps` of a batch, if that is not 0.
    """
    half = round(self.half_size_share * steps)
    if steps >= 10 * ROUND:
      # Steps are logged and saved in rounds, so both stages are whole rounds.
      half = round(half / ROUND) * ROUND
    full = steps - half
    at_half = partial(self._stage_step, shrink=2, first=0, steps=half)
    at_full = partial(self._stage_step, shrink=1, first=half, steps=full)
    stages = [(at_half, half), (at_full, full)]
    return [(step, count) for step, count in stages if count]

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take the Adam step of the stage that `state.step` is in.

    The recipe's `synthesis_steps` are the steps of a batch.
    """
    recipe = context.recipe or self.recipe
    (step, count), *rest = self.stages(recipe.synthesis_steps)
    if not rest:
      return step(key, state, context)
    ((next_step, _),) = rest
    in_first = state.step < count
    result = (state, Info(*[jnp.float32(0.0) for _ in Info._fields]))
    for predicate, function in ((in_first, step), (~in_first, next_step)):
      # A clone, because the result of only one of the two is kept.
      draw = jax.random.clone(key)
      result = loops.cond(predicate, function, result, draw, state, context)
    return result

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return all images, or a random `count` of them if that is fewer."""
    images = state.best_images if self.best_snapshot else state.images
    batch = Batch(jnp.clip(images, 0.0, 1.0), state.labels)
    return subset(key, batch, count)

  def _stage_step(
    self,
    key: jax.Array,
    state: State,
    context: Context,
    *,
    shrink: int,
    first: int,
    steps: int,
  ) -> tuple[State, Info]:
    """Take an Adam step on the normalized images.

    Args:
      shrink: side of the squares of pixels that the networks see averages of.
      first: steps of the batch before this stage.
      steps: steps of this stage.
    """
    spec, optimizer = context.teacher.spec, self._optimizer(steps)
    x = spec.normalize(state.images)
    opt_state, best_loss = state.opt_state, state.best_loss
    if first:
      restart = (optimizer.init(x), jnp.float32(jnp.inf))
      opt_state, best_loss = loops.select(
        state.step == first, restart, (opt_state, best_loss)
      )
    gradient, info = self.gradient(key, x, state.labels, context, shrink)
    updates, opt_state = optimizer.update(gradient, opt_state)
    images = spec.denormalize(x + updates)  # type: ignore
    if self.clip:
      images = jnp.clip(images, 0.0, 1.0)
    # The loss is that of the images before this step.
    better = info.loss < best_loss
    best_images = jnp.where(better, state.images, state.best_images)
    best_loss = jnp.where(better, info.loss, best_loss)
    step = state.step + 1
    new = State(images, state.labels, opt_state, best_images, best_loss, step)
    return new, info

  def _optimizer(self, steps: int) -> optax.GradientTransformation:
    """Return Adam for a stage of `steps`; its state does not depend on them."""
    rate = schedules.warmup(
      self.image_lr, self.image_warmup, steps, self.image_schedule
    )
    return optax.adam(rate, b1=self.beta1, b2=self.beta2)


# As released for a ResNet-50 and 224 pixels, 2,000 steps at 112 and then 1,000:
# give it 3,000. Batches were 84 there and 152 in the paper.
IMAGENET = DeepInversion(
  synthesis_batch_size=84,
  image_lr=0.25,
  image_schedule="cosine",
  image_warmup=100,
  beta1=0.5,
  beta2=0.9,
  bn_weight=0.01,
  first_bn_weight=10.0,
  tv_weight=1e-4,
  l2_weight=1e-5,
  jitter=30,
  image_flip=True,
  clip=True,
  half_size_share=2 / 3,
)
