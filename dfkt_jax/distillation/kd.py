"""Knowledge distillation: the student imitates the teacher's answers.

  L = D(T(x), S(x)) + w_hard CE(S(x), y)

with D the tempered KL divergence (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015) or the mean absolute difference of logits (Fang et al.,
DFAD, 2019), and y the label an image was made for, or else the teacher's own
decision. x is the augmented image, which the teacher sees too; with `target`
"stored", T(x) is the soft label that was stored with the image before.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.distillation import optimizers
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch


class State(NamedTuple):
  student: Network
  opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting; agreement is of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array


@dataclasses.dataclass(frozen=True)
class KD:
  """Hyper-parameters of the student's side."""

  steps: int = 80_000  # student steps in all, rounded up to whole rounds
  loss: Literal["kl", "l1"] = "kl"
  temperature: float = 1.0  # of the KL divergence; l1 has none
  target: Literal["teacher", "stored"] = "teacher"  # whose answers to imitate
  hard_label_weight: float = 0.0
  optimizer: optimizers.Name = "sgd"
  lr: float = 0.1  # falls to 0 along a cosine over --steps
  momentum: float = 0.9  # of SGD
  weight_decay: float = 1e-4  # added to the gradient, as PyTorch does
  crop_padding: int = 0  # random crops after zero padding by this many pixels
  flip: bool = False  # mirror each image half of the time
  rotation: float = 0.0  # degrees an image is turned by, at most
  shrink: float = 0.0  # share of its size an image is shrunk by, at most
  noise: float = 0.0  # standard deviation of Gaussian pixel noise
  salt_and_pepper: float = 0.0  # share of pixels set to black or white
  mix: float = 0.0  # share of images mixed with another, half by a mask
  statistics: net.Statistics = "global"  # of the student's BatchNorm

  def init(self, student: Network) -> State:
    return State(student, self.make_optimizer().init(student.params))

  def step(
    self, key: jax.Array, state: State, batch: Batch, teacher: Network
  ) -> tuple[State, Info]:
    """One optimiser step.

    Raises:
      UsageError: `target` is "stored" and the batch has no soft labels.
    """
    augment_key, dropout_key = jax.random.split(key)
    images = self.augment(augment_key, batch.images)
    if self.target == "teacher":
      targets = net.logits(teacher, images)
    elif self.mix:
      raise UsageError(
        "--mix makes images that no soft label was stored for: use --target"
        " teacher, or --mix 0"
      )
    elif batch.soft_labels is not None:
      targets = batch.soft_labels
    else:
      raise UsageError(
        "--target stored needs images that were made for soft labels, as those"
        " of soft-target and zskd with a pool: use --target teacher"
      )
    params = state.student.params
    gradient, (variables, info) = jax.grad(self._loss, has_aux=True)(
      params, state.student, images, batch.labels, targets, dropout_key
    )
    return self.update(state, variables, gradient), info

  def update(self, state: State, variables: dict, gradient: Any) -> State:
    """One optimiser step along `gradient`, of the student's parameters.

    `variables` are what `network.train_logits` answered to go on with.
    """
    params = state.student.params
    updates, opt_state = self.make_optimizer().update(
      gradient, state.opt_state, params
    )
    student = dataclasses.replace(state.student, variables=variables)
    student = student.with_params(optax.apply_updates(params, updates))
    return State(student, opt_state)

  def augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """What the fields say, drawn anew for every image."""
    keys = jax.random.split(key, 5)
    images = augment.crop_and_flip(
      keys[0], images, self.crop_padding, self.flip
    )
    if self.rotation or self.shrink:
      images = augment.random_affine(
        keys[1], images, self.rotation, self.shrink
      )
    if self.noise:
      images = augment.gaussian_noise(keys[2], images, self.noise)
    if self.salt_and_pepper:
      images = augment.salt_and_pepper(keys[3], images, self.salt_and_pepper)
    if self.mix:
      images = augment.mix(keys[4], images, self.mix)
    return images

  def distance(
    self, teacher_logits: jax.Array, student_logits: jax.Array
  ) -> jax.Array:
    """D(T(x), S(x)), f32[]."""
    if self.loss == "l1":
      return classification.l1(teacher_logits, student_logits)
    return classification.kl(teacher_logits, student_logits, self.temperature)

  def objective(
    self, teacher_logits: jax.Array, logits: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, Info]:
    """L of the student's `logits`; labels are i32[batch], -1 for none."""
    decisions = teacher_logits.argmax(1)
    distance = self.distance(teacher_logits, logits)
    hard_label = classification.cross_entropy(
      logits, jnp.where(labels < 0, decisions, labels)
    )
    agreement = (decisions == logits.argmax(1)).mean()
    info = Info(distance, hard_label, agreement)
    return distance + self.hard_label_weight * hard_label, info

  def _loss(self, params, student, images, labels, teacher_logits, key):
    logits, variables = net.train_logits(
      student.with_params(params), images, key, self.statistics
    )
    loss, info = self.objective(teacher_logits, logits, labels)
    return loss, (variables, info)

  def make_optimizer(self) -> optax.GradientTransformation:
    return optimizers.make(
      self.optimizer, self.lr, self.steps, self.momentum, self.weight_decay
    )
