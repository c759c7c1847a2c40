"""DeepInversion: pixels optimised until the teacher takes them for its data.

  x* = argmin_x  CE(T(x), y)
                 + w_bn sum_l a_l (|mu_l(x) - m_l| + |s2_l(x) - v_l|)
                 + w_tv TV(x) + w_l2 |x| + w_c (1 - JS(T(x), S(x)))

mu_l, s2_l are batch mean and variance at the input of BatchNorm l and m_l, v_l
its running ones; |.| is the Euclidean norm over channels, not its square. a_l
is 1 but for the first layer. The last term is the competition of Adaptive
DeepInversion: images on which teacher T and the current student S disagree.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion", CVPR 2020, equations 2-4 and its adaptive variant; CIFAR-10
settings as published, betas, jitter and the first-layer weight as released.

The released code has no student training: `transfer` is that of the port in
zju-vipa's DataFree (temperature 20, 400 student steps a batch, crops, flips);
the authors name temperature 3. The learning rate is constant, as for CIFAR; the
warm-up, cosine and two resolutions of the ImageNet runs are not here.

As released and here: x lives in normalised space, one jitter offset moves the
whole batch, CIFAR-10 runs do not clip. Ours: labels are balanced; the
Jensen-Shannon divergence clamps no probability (`js_form="released"` does, and
is degenerate with many classes); the best snapshot is a real copy (the released
one aliases the live images, so that "best" is always the last); offsets and
flips can be drawn for each image (`jitter_each`, `image_flip`).
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, image_prior, statistics
from dfkt_jax.network import Network
from dfkt_jax.synthesis import targets
from dfkt_jax.synthesis.contract import Batch


class State(NamedTuple):
  images: jax.Array  # f32[batch, height, width, channels], not clipped
  labels: jax.Array  # i32[batch]
  opt_state: optax.OptState  # of the normalised images
  best_images: jax.Array  # like images
  best_loss: jax.Array  # f32[]


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  cross_entropy: jax.Array
  bn_distance: jax.Array
  total_variation: jax.Array
  l2: jax.Array
  competition: jax.Array


@dataclasses.dataclass(frozen=True)
class DeepInversion:
  """Hyper-parameters; defaults are those for CIFAR-10."""

  synthesis_batch_size: int = 256  # images optimised together
  image_lr: float = 0.05  # of Adam, in normalised pixel units (paper, CIFAR)
  beta1: float = 0.9  # of Adam (released; 0.5 for ImageNet)
  beta2: float = 0.999  # of Adam (released; 0.9 for ImageNet)
  class_weight: float = 1.0  # of the cross-entropy
  bn_weight: float = 10.0  # of the BatchNorm term (paper, CIFAR; ImageNet 0.01)
  first_bn_weight: float = 1.0  # a_1 (10 for ImageNet)
  tv_weight: float = 2.5e-5  # of the total variation (paper)
  l2_weight: float = 0.0  # of the mean image norm (released, CIFAR)
  competition_weight: float = 0.0  # 0: DeepInversion; adaptive above, often 10
  competition_temperature: float = 3.0  # of the softmax inside JS (released)
  js_form: Literal["exact", "released"] = "exact"  # released: clamped
  jitter: int = 2  # pixels the batch is rolled by, at most (released, CIFAR)
  jitter_each: bool = False  # a roll of its own for every image
  image_flip: bool = False  # mirror each image half of the time (ImageNet)
  clip: bool = False  # keep pixels inside [0, 1] after each step (ImageNet)
  best_snapshot: bool = True  # keep the images of the lowest loss, not the last

  transfer: ClassVar[Transfer] = Transfer(
    kd=KD(steps=80_000, lr=0.1, temperature=20.0, crop_padding=4, flip=True),
    synthesis_steps=2000,
    student_steps=400,
    pool_size=51_200,
  )

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    """Unit Gaussian pixels and balanced labels.

    Raises:
      UsageError: the teacher has no BatchNorm but the BatchNorm term is on, or
        the competition is on and there is no student.
    """
    self._check(teacher, student)
    noise_key, label_key = jax.random.split(key)
    shape = (self.synthesis_batch_size, *teacher.spec.shape)
    x = parallel.split(jax.random.normal(noise_key, shape))
    labels = targets.balanced(label_key, shape[0], teacher.spec.classes)
    opt_state = parallel.split(self._optimizer().init(x))
    images = teacher.spec.denormalise(x)
    # A copy: two fields of a state that is donated must not share a buffer.
    best_images = jnp.copy(images)
    return State(images, labels, opt_state, best_images, jnp.float32(jnp.inf))

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """One Adam step on the normalised images."""
    x = teacher.spec.normalise(state.images)
    gradient, info = jax.grad(self._loss, has_aux=True)(
      x, key, state.labels, teacher, student
    )
    updates, opt_state = self._optimizer().update(gradient, state.opt_state)
    images = teacher.spec.denormalise(x + updates)  # type: ignore
    if self.clip:
      images = jnp.clip(images, 0.0, 1.0)
    # The loss is that of the images before this step.
    better = info.loss < state.best_loss
    best_images = jnp.where(better, state.images, state.best_images)
    best_loss = jnp.where(better, info.loss, state.best_loss)
    return State(images, state.labels, opt_state, best_images, best_loss), info

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    """The images as they are, or `batch_size` of them where that is fewer."""
    images = state.best_images if self.best_snapshot else state.images
    images = jnp.clip(images, 0.0, 1.0)
    if batch_size >= len(images):
      return Batch(images, state.labels)
    chosen = jax.random.permutation(key, len(images))[:batch_size]
    return Batch(images[chosen], state.labels[chosen])

  def _loss(self, x, key, labels, teacher, student):
    roll_key, flip_key = jax.random.split(key)
    if self.jitter:
      roll = augment.jitter_each if self.jitter_each else augment.jitter
      x = roll(roll_key, x, self.jitter)
    if self.image_flip:
      x = augment.random_flip(flip_key, x)
    images = teacher.spec.denormalise(x)
    logits, taps = net.statistics(teacher, images)

    cross_entropy = classification.cross_entropy(logits, labels)
    bn_distance = jnp.float32(0.0)
    if self.bn_weight:
      first = net.batch_norm_paths(teacher)[0]
      bn_distance = statistics.norm_distance(
        taps, teacher.batch_stats, first, self.first_bn_weight
      )
    total_variation = image_prior.total_variation_l2(x)
    l2 = image_prior.l2_norm(x)
    competition = jnp.float32(0.0)
    if self.competition_weight:
      divergence = self._jensen_shannon(logits, net.logits(student, images))
      competition = 1.0 - jnp.clip(divergence, 0.0, 1.0)

    loss = (
      self.class_weight * cross_entropy
      + self.bn_weight * bn_distance
      + self.tv_weight * total_variation
      + self.l2_weight * l2
      + self.competition_weight * competition
    )
    return loss, Info(
      loss, cross_entropy, bn_distance, total_variation, l2, competition
    )

  def _jensen_shannon(self, teacher_logits, student_logits):
    form = {
      "exact": classification.jensen_shannon,
      "released": classification.jensen_shannon_released,
    }[self.js_form]
    return form(teacher_logits, student_logits, self.competition_temperature)

  def _optimizer(self):
    return optax.adam(self.image_lr, b1=self.beta1, b2=self.beta2)

  def _check(self, teacher, student):
    if self.bn_weight and not teacher.batch_stats:
      raise UsageError(
        "deep_inversion matches BatchNorm statistics and this teacher has no"
        " BatchNorm: give a teacher that has, or --bn-weight 0 for the class"
        " term and image prior alone"
      )
    if self.jitter < 0 or self.synthesis_batch_size < 1:
      raise UsageError(
        f"--jitter is {self.jitter} and --synthesis-batch-size"
        f" {self.synthesis_batch_size}: give 0 or more, and 1 or more"
      )
    if self.competition_weight and student is None:
      raise UsageError(
        "deep_inversion --competition-weight needs a student to compete with:"
        " give --student NETWORK_DIR, or --competition-weight 0"
      )
