"""Noise adaptation: a student that allows for wrong labels (DFND's learner).

  L = KD + w CE(p_S(x) Q, y)

KD is the distillation loss of `kd`, of KL divergence at temperature 4 by
default. Q is a row-stochastic matrix [true class, label] that explains why a
label y may be wrong on images of another kind: its diagonal is the assumed
accuracy of the labels, the rest of each row is learned. Without Q, the second
term would teach the teacher's mistakes.

Source: Chen et al., "Learning Student Networks in the Wild", CVPR 2021. The
defaults are the paper's; the released code does not run. Deviations: the
paper's learning rate falls to a tenth at 40 % and 80 % of the steps, ours along
a cosine. The paper's y is the teacher's decision; so is ours, except that an
image with a label of its own (such as one that was synthesized for a class)
keeps that label, as in `kd`.
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.contracts import Context, NonNegative, Share
from dfkt_jax.distillation import kd as distillation
from dfkt_jax.distillation.kd import KD, hard_labels
from dfkt_jax.losses import reduce
from dfkt_jax.network import Network


class State(NamedTuple):
  kd: distillation.State
  noise: jax.Array  # f32[classes, classes], logits of Q off its diagonal
  noise_opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting, and the agreement of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array
  noisy_label: jax.Array


@dataclasses.dataclass(frozen=True)
class NoiseAdaptation:
  """Hyper-parameters; defaults are the paper's."""

  kd: KD = KD(
    lr=0.1, weight_decay=5e-4, temperature=4.0, crop_padding=4, flip=True
  )
  noise_weight: Annotated[float, NonNegative] = 1.0  # w; 0 leaves KD alone
  # of the labels: the diagonal of Q
  assumed_accuracy: Annotated[float, Share] = 0.95
  noise_lr: Annotated[float, NonNegative] = 1e-3  # of Adam on Q (paper)

  def init(self, key: jax.Array, student: Network, context: Context) -> State:
    """Return the state before the first step; Q begins uniform off-diagonal."""
    noise = jnp.zeros((context.teacher.spec.classes,) * 2)
    learner = self.kd.init(key, student, context)
    return State(learner, noise, self._optimizer().init(noise))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take one step of the student and of Q.

    Raises:
      UsageError: as `KD.step`.
    """
    kd, batch, student = self.kd, context.batch, state.kd.student
    augment_key, dropout_key = jax.random.split(key)
    images = kd.augment(augment_key, batch.images)
    targets = kd.targets(images, context)
    task = context.teacher.spec.task
    labels = hard_labels(batch.labels, task.decisions(targets))

    def loss(params, noise):
      logits, variables = net.train_logits(
        student.with_params(params), images, dropout_key, kd.statistics
      )
      distilled, terms = kd.objective(
        task, targets, logits, labels, batch.weights
      )
      adapted = jax.nn.softmax(logits) @ self.transition(noise)
      of_label = jnp.take_along_axis(adapted, labels[:, None], axis=1)[:, 0]
      noisy_label = reduce.mean(-jnp.log(of_label + 1e-12), batch.weights)
      info = Info(*terms, noisy_label)
      return distilled + self.noise_weight * noisy_label, (variables, info)

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      student.params, state.noise
    )
    learner = kd.update(state.kd, variables, gradients[0], context.recipe.steps)
    updates, noise_opt_state = self._optimizer().update(
      gradients[1], state.noise_opt_state
    )
    return State(learner, state.noise + updates, noise_opt_state), info  # type: ignore

  def student(self, state: State) -> Network:
    """Return the student as it is."""
    return state.kd.student

  def transition(self, noise: jax.Array) -> jax.Array:
    """Return Q, f32[classes, classes], of its logits in the same shape.

    The diagonal is the assumed accuracy, the rest of each row a softmax.
    """
    diagonal = jnp.eye(len(noise), dtype=bool)
    rest = jax.nn.softmax(jnp.where(diagonal, -jnp.inf, noise))
    accuracy = self.assumed_accuracy
    return jnp.where(diagonal, accuracy, (1.0 - accuracy) * rest)

  def _optimizer(self):
    return optax.adam(self.noise_lr)
