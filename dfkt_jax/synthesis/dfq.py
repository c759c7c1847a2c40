"""DFQ: a generator against the student, kept close to the teacher's data.

  min_S max_G  w_adv KL(T || S) - w_bn L_bn - w_inst L_inst + w_bal H(E[T])

over images G(z), z ~ N(0, I). L_bn matches the images' BatchNorm inputs to the
teacher's running statistics, L_inst is low for confident predictions, and
H(E[T]) is high where classes are equally frequent. One `step` trains the
generator once; the learner trains the student.

Source: Choi et al., "Data-Free Network Quantization With Adversarial Knowledge
Distillation", CVPR Workshops 2020. Defaults are those of the port in zju-vipa's
DataFree. There the BatchNorm term is the L2 norm and L_inst the cross-entropy
with the teacher's decision, and later papers compare with its networks and
rates. `PAPER` has the Gaussian KL and the entropy of the paper.

As in the port, the generator ends in a sigmoid, so images are inside [0, 1] (a
re-implementation of the paper ends in tanh and BatchNorm), and the student is
in eval mode while the generator learns. Ours: the generator uses the statistics
of the batch in sampling too, where the port switches to running statistics.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.contracts import (
  Batch,
  Context,
  NonNegative,
  Positive,
  unlabelled,
)
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.losses import classification, information, statistics
from dfkt_jax.models import generator
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.synthesis import requirements


class State(NamedTuple):
  generator: GeneratorNetwork
  opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  adversarial: jax.Array  # KL(teacher || student), which the generator raises
  bn_distance: jax.Array
  instance: jax.Array
  marginal_entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class DFQ:
  """Hyper-parameters; defaults are the DataFree port's for CIFAR-10."""

  # images of one generator step
  synthesis_batch_size: Annotated[int, Positive] = 256
  latent: Annotated[int, Positive] = 256  # dimensions of the noise z
  # channels, coarse to fine
  generator_widths: Annotated[tuple[int, ...], Positive] = (256, 128, 64)
  # of Adam (paper, port)
  generator_lr: Annotated[float, NonNegative] = 1e-3
  beta1: Annotated[float, NonNegative] = 0.5  # of Adam (port)
  beta2: Annotated[float, NonNegative] = 0.999  # of Adam (port)
  # of KL(T || S) (paper, port)
  adversarial_weight: Annotated[float, NonNegative] = 1.0
  bn_weight: Annotated[float, NonNegative] = 1.0  # of the BatchNorm term (port)
  bn_form: Literal["norm", "gaussian_kl"] = "norm"  # port; paper
  # of the term for confident predictions (port)
  instance_weight: Annotated[float, NonNegative] = 1.0
  instance_form: Literal["one_hot", "entropy"] = "one_hot"  # port; paper
  # of the marginal entropy (port)
  balance_weight: Annotated[float, NonNegative] = 20.0

  recipe: ClassVar[Recipe] = Recipe(
    steps=80_000, synthesis_steps=1, student_steps=10
  )
  learner: ClassVar[KD] = KD(lr=0.1, temperature=1.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Initialize a generator.

    Raises:
      UsageError: the teacher has no BatchNorm but the BatchNorm term is on, or
        the adversarial term is on and there is no student.
    """
    if self.bn_weight:
      requirements.require_batch_norm("dfq", context.teacher)
    if self.adversarial_weight:
      requirements.require_student(
        "dfq trains its generator against a student",
        context.student,
        "--adversarial-weight",
      )
    network = generator.init(
      key, context.teacher.spec.shape, self.generator_widths, self.latent
    )
    return State(network, self._optimizer().init(network.params))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take an Adam step of the generator."""
    gradient, info = jax.grad(self._loss, has_aux=True)(
      state.generator.params, key, state.generator, context
    )
    updates, opt_state = self._optimizer().update(gradient, state.opt_state)
    params = optax.apply_updates(state.generator.params, updates)
    network = dataclasses.replace(state.generator, params=params)
    return State(network, opt_state), info

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return `count` images of new noise, without a class."""
    return unlabelled(generator.sample(key, state.generator, count))

  def _loss(self, params, key, network, context):
    network = dataclasses.replace(network, params=params)
    images = generator.sample(key, network, self.synthesis_batch_size)
    teacher = context.teacher
    logits, taps = net.statistics(teacher, images)

    adversarial = bn_distance = jnp.float32(0.0)
    if self.adversarial_weight:
      student_logits = net.logits(context.student, images)
      adversarial = classification.kl(logits, student_logits).mean()
    if self.bn_weight:
      distance = {
        "norm": statistics.norm_distance,
        "gaussian_kl": statistics.gaussian_kl,
      }[self.bn_form]
      bn_distance = distance(taps, teacher.batch_stats)
    instance = {
      "one_hot": classification.confidence,
      "entropy": information.entropy,
    }[self.instance_form](logits).mean()
    marginal_entropy = information.marginal_entropy(logits)

    loss = (
      -self.adversarial_weight * adversarial
      + self.bn_weight * bn_distance
      + self.instance_weight * instance
      - self.balance_weight * marginal_entropy
    )
    return loss, Info(
      loss, adversarial, bn_distance, instance, marginal_entropy
    )

  def _optimizer(self):
    return optax.adam(self.generator_lr, b1=self.beta1, b2=self.beta2)


# The losses of the paper: Gaussian KL, entropies, one weight for all three,
# whose value is not certain (0.1, or 0.01 in a third party's code). The paper's
# networks, its long generator warm-up and its Nesterov momentum are not those
# of `recipe` and `learner`.
PAPER = DFQ(
  latent=512,
  bn_form="gaussian_kl",
  instance_form="entropy",
  bn_weight=0.1,
  instance_weight=0.1,
  balance_weight=0.1,
)
