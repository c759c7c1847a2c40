"""DFND: images the teacher is surest of, a student that allows for noise.

  score(x) = -CE(T(x), argmax T(x))                       the highest are taken
  L = t^2 KL(T(x) / t || S(x) / t) + w CE(p_S(x) Q, argmax T(x))

Q is a row-stochastic matrix [true class, label] that explains why a label of
the teacher may be wrong on images of another kind: its diagonal is the
teacher's accuracy, the rest of each row is learned. Without Q, the second term
would teach the teacher's mistakes.

Source: Chen et al., "Learning Student Networks in the Wild", CVPR 2021.
Defaults are the paper's; the released code does not run. Its learning rate
falls to a tenth at 40 % and 80 % of the steps, ours along a cosine; it takes
600,000 images of ImageNet at 32x32.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfkt_jax import network as net
from dfkt_jax.distillation import kd as distillation
from dfkt_jax.distillation.kd import KD
from dfkt_jax.network import Network
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.scoring import Scores
from dfkt_jax.openworld.selection import Selection


class State(NamedTuple):
  learner: distillation.State
  noise: jax.Array  # f32[classes, classes], logits of Q off its diagonal
  noise_opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting; agreement is of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array
  noisy_label: jax.Array


@dataclasses.dataclass(frozen=True)
class DFND:
  """Hyper-parameters; defaults are the paper's."""

  noise_weight: float = 1.0  # w; 0 leaves the selection alone
  assumed_accuracy: float = 0.95  # of the teacher: the diagonal of Q
  noise_lr: float = 1e-3  # of Adam on Q (paper)

  study: ClassVar[Study] = Study(
    kd=KD(
      steps=40_000,
      lr=0.1,
      weight_decay=5e-4,
      temperature=4.0,
      crop_padding=4,
      flip=True,
    ),
    batch_size=512,
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """The lowest cross-entropies with the teacher's own decision."""
    index = np.argsort(-scores.confidence, kind="stable")[:count]
    return Selection(index, np.log(scores.confidence[index]))

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network,
    kd: KD,
    summary: Any,
  ) -> State:
    noise = jnp.zeros((teacher.spec.classes,) * 2)
    return State(kd.init(student), noise, self._optimizer().init(noise))

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    teacher: Network,
    kd: KD,
  ) -> tuple[State, Info]:
    """One step of the student and of Q."""
    augment_key, dropout_key = jax.random.split(key)
    images = kd.augment(augment_key, images)
    teacher_logits = net.logits(teacher, images)
    student = state.learner.student

    def loss(params, noise):
      logits, variables = net.train_logits(
        student.with_params(params), images, dropout_key, kd.statistics
      )
      decisions = teacher_logits.argmax(1)
      distilled, terms = kd.objective(teacher_logits, logits, decisions)
      adapted = jax.nn.softmax(logits) @ self.transition(noise)
      of_label = jnp.take_along_axis(adapted, decisions[:, None], axis=1)
      noisy_label = -jnp.log(of_label + 1e-12).mean()
      info = Info(*terms, noisy_label)
      return distilled + self.noise_weight * noisy_label, (variables, info)

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      student.params, state.noise
    )
    learner = kd.update(state.learner, variables, gradients[0])
    updates, noise_opt_state = self._optimizer().update(
      gradients[1], state.noise_opt_state
    )
    return State(learner, state.noise + updates, noise_opt_state), info  # type: ignore

  def student(self, state: State) -> Network:
    return state.learner.student

  def transition(self, noise: jax.Array) -> jax.Array:
    """Q: the assumed accuracy on the diagonal, a softmax of `noise` beside."""
    diagonal = jnp.eye(len(noise), dtype=bool)
    rest = jax.nn.softmax(jnp.where(diagonal, -jnp.inf, noise))
    accuracy = self.assumed_accuracy
    return jnp.where(diagonal, accuracy, (1.0 - accuracy) * rest)

  def _optimizer(self):
    return optax.adam(self.noise_lr)
