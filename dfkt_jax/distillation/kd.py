"""KD: the student imitates the teacher's predictions.

  L = D(T(x), S(x)) + w_hard CE(S(x), y)

D is the tempered KL divergence (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015) or the mean absolute difference of logits (Fang et al.,
"Data-Free Adversarial Distillation", 2019, DFAD), and y the label that an image
was made for, or else the teacher's decision. x is the augmented image, which
the teacher sees too. With `target` "stored", T(x) is the soft label that was
stored with the image. Both terms are means over the batch, weighted by the
batch's weights if it has any.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context, NonNegative, Positive, Share
from dfkt_jax.distillation import optimizers
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, reduce
from dfkt_jax.network import Network, Task


class State(NamedTuple):
  student: Network
  opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting, and the agreement of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array


@dataclasses.dataclass(frozen=True)
class KD:
  """Hyper-parameters of distillation by predictions alone."""

  loss: Literal["kl", "l1"] = "kl"
  # of the KL divergence; l1 has none
  temperature: Annotated[float, Positive] = 1.0
  # the teacher's predictions, or the soft labels stored with the images
  target: Literal["teacher", "stored"] = "teacher"
  hard_label_weight: Annotated[float, NonNegative] = 0.0  # w_hard
  optimizer: optimizers.Name = "sgd"  # of the student
  # falls to 0 along a cosine over --steps
  lr: Annotated[float, NonNegative] = 0.1
  momentum: Annotated[float, NonNegative] = 0.9  # of SGD
  # added to the gradient, as PyTorch does
  weight_decay: Annotated[float, NonNegative] = 1e-4
  # pixels of zero padding before random crops
  crop_padding: Annotated[int, NonNegative] = 0
  flip: bool = False  # mirror each image with probability one half
  # the largest rotation of an image, in degrees
  rotation: Annotated[float, NonNegative] = 0.0
  # the largest share of its size by which an image shrinks
  shrink: Annotated[float, Share] = 0.0
  # standard deviation of Gaussian pixel noise
  noise: Annotated[float, NonNegative] = 0.0
  # share of pixels set to black or white
  salt_and_pepper: Annotated[float, Share] = 0.0
  # share of images mixed with another, half of them by a mask
  mix: Annotated[float, Share] = 0.0
  statistics: net.Statistics = "global"  # of the student's BatchNorm

  def init(self, key: jax.Array, student: Network, context: Context) -> State:
    """Return the state before the first step; it uses no randomness."""
    optimizer = self.make_optimizer(context.recipe.steps)
    return State(student, optimizer.init(student.params))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take one optimizer step on `context.batch`.

    Raises:
      UsageError: `target` is "stored" and the batch has no soft labels, or
        `mix` makes images that have none.
    """
    batch, student = context.batch, state.student
    augment_key, dropout_key = jax.random.split(key)
    images = self.augment(augment_key, batch.images)
    targets = self.targets(images, context)

    def loss(params):
      logits, variables = net.train_logits(
        student.with_params(params), images, dropout_key, self.statistics
      )
      task = context.teacher.spec.task
      total, info = self.objective(
        task, targets, logits, batch.labels, batch.weights
      )
      return total, (variables, info)

    gradient, (variables, info) = jax.grad(loss, has_aux=True)(student.params)
    steps = context.recipe.steps
    return self.update(state, variables, gradient, steps), info

  def student(self, state: State) -> Network:
    """Return the student as it is."""
    return state.student

  def update(
    self, state: State, variables: dict, gradient: Any, steps: int
  ) -> State:
    """Take one optimizer step of the student's parameters along `gradient`.

    Args:
      variables: the student's after the forward pass, as
        `network.train_logits` returns them.
      steps: those of the whole run, over which the learning rate falls.
    """
    params = state.student.params
    updates, opt_state = self.make_optimizer(steps).update(
      gradient, state.opt_state, params
    )
    student = dataclasses.replace(state.student, variables=variables)
    student = student.with_params(optax.apply_updates(params, updates))
    return State(student, opt_state)

  def augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Augment f32[batch, height, width, channels] images in [0, 1].

    The strength is that of the fields; each image has draws of its own.
    """
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

  def targets(self, images: jax.Array, context: Context) -> jax.Array:
    """Return the logits to imitate on augmented images, f32[batch, classes].

    Raises:
      UsageError: as `stored_targets`, with `target` "stored".
    """
    if self.target == "stored":
      return self.stored_targets(context.batch)
    return net.logits(context.teacher, images)

  def stored_targets(self, batch: Batch) -> jax.Array:
    """Return the logits of a batch's soft labels, f32[batch, classes].

    Raises:
      UsageError: it has none, or `mix` makes images that have none.
    """
    if self.mix:
      raise UsageError(
        "--mix makes images that no soft label was stored for: use --target"
        " teacher, or --mix 0"
      )
    if batch.soft_labels is None:
      raise UsageError(
        "--target stored needs images that were made for soft labels, as those"
        " of soft-target and zskd with a replay buffer: use --target teacher"
      )
    return batch.soft_labels

  def distance(
    self, teacher_logits: jax.Array, student_logits: jax.Array
  ) -> jax.Array:
    """Return D(T(x), S(x)) per example, f32[batch].

    Both logits are f32[batch, classes].
    """
    if self.loss == "l1":
      return classification.l1(teacher_logits, student_logits)
    return classification.kl(teacher_logits, student_logits, self.temperature)

  def objective(
    self,
    task: Task,
    teacher_logits: jax.Array,
    logits: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None = None,
  ) -> tuple[jax.Array, Info]:
    """Return L of the student's `logits`, f32[], and its terms.

    Args:
      task: the teacher's, which decides what agrees.
      teacher_logits: f32[batch, classes].
      logits: f32[batch, classes].
      labels: i32[batch], -1 where an image has none; None: all lack one.
      weights: f32[batch], of the examples; None: all count alike.
    """
    decisions = task.decisions(teacher_logits)
    distance = reduce.mean(self.distance(teacher_logits, logits), weights)
    labels = hard_labels(labels, decisions)
    cross_entropy = classification.cross_entropy(logits, labels)
    hard_label = reduce.mean(cross_entropy, weights)
    agreement = task.agreement(teacher_logits, logits)
    info = Info(distance, hard_label, reduce.mean(agreement, weights))
    return distance + self.hard_label_weight * hard_label, info

  def make_optimizer(self, steps: int) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps` student steps."""
    return optimizers.make(
      self.optimizer, self.lr, steps, self.momentum, self.weight_decay
    )


def hard_labels(labels: jax.Array | None, decisions: jax.Array) -> jax.Array:
  """Return an image's own label, or the teacher's decision where it has none.

  Args:
    labels: i32[batch], -1 where an image has none; None: all lack one.
    decisions: i32[batch].
  """
  if labels is None:
    return decisions
  return jnp.where(labels < 0, decisions, labels)
