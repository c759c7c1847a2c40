"""Knowledge distillation: the student imitates the teacher's answers.

  L = D(T(x), S(x)) + w_hard CE(S(x), y)

with D the tempered KL divergence (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015) or the mean absolute difference of logits (Fang et al.,
DFAD, 2019), and y the label an image was made for, or else the teacher's own
decision.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.distillation import optimizers
from dfkt_jax.losses import classification
from dfkt_jax.network import Network


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
  hard_label_weight: float = 0.0
  optimizer: optimizers.Name = "sgd"
  lr: float = 0.1  # falls to 0 along a cosine over --steps
  momentum: float = 0.9  # of SGD
  weight_decay: float = 1e-4  # added to the gradient, as PyTorch does
  crop_padding: int = 0  # random crops after zero padding by this many pixels
  flip: bool = False  # mirror each image half of the time

  def init(self, student: Network) -> State:
    return State(student, self._optimizer().init(student.params))

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    labels: jax.Array,
    teacher: Network,
  ) -> tuple[State, Info]:
    """One optimiser step on f32[batch, ...] images and i32[batch] labels."""
    augment_key, dropout_key = jax.random.split(key)
    images = augment.crop_and_flip(
      augment_key, images, self.crop_padding, self.flip
    )
    teacher_logits = net.logits(teacher, images)
    params = state.student.params
    gradient, (variables, info) = jax.grad(self._loss, has_aux=True)(
      params, state.student, images, labels, teacher_logits, dropout_key
    )
    updates, opt_state = self._optimizer().update(
      gradient, state.opt_state, params
    )
    student = dataclasses.replace(state.student, variables=variables)
    student = student.with_params(optax.apply_updates(params, updates))
    return State(student, opt_state), info

  def _loss(self, params, student, images, labels, teacher_logits, key):
    logits, variables = net.train_logits(
      student.with_params(params), images, key
    )
    if self.loss == "kl":
      distance = classification.kl(teacher_logits, logits, self.temperature)
    else:
      distance = classification.l1(teacher_logits, logits)
    decisions = teacher_logits.argmax(1)
    hard_label = classification.cross_entropy(
      logits, jnp.where(labels < 0, decisions, labels)
    )
    agreement = (decisions == logits.argmax(1)).mean()
    info = Info(distance, hard_label, agreement)
    return distance + self.hard_label_weight * hard_label, (variables, info)

  def _optimizer(self):
    return optimizers.make(
      self.optimizer, self.lr, self.steps, self.momentum, self.weight_decay
    )
