"""DFQ: a generator plays against the student but keeps to the teacher's data.

  min_S max_G  w_adv KL(T || S) - w_bn L_bn - w_inst L_inst + w_bal H(E[T])

over images G(z), z ~ N(0, I). L_bn matches the images' BatchNorm inputs to the
teacher's running statistics, L_inst asks for sure predictions, H(E[T]) for all
classes equally often. One `step` is one of the generator; the student's side is
the transfer round's.

Source: Choi et al., "Data-Free Network Quantization With Adversarial Knowledge
Distillation", CVPR Workshops 2020. Defaults are those of the port in zju-vipa's
DataFree, whose BatchNorm term is the L2 norm, whose L_inst is the cross-entropy
with the teacher's decision and whose networks and rates are the ones others
compare with; `PAPER` has the paper's own Gaussian KL and entropy.

As in the port, the generator ends in a sigmoid, so images are inside [0, 1] (a
re-implementation of the paper's ends in tanh and BatchNorm), and the student is
in eval mode while the generator learns. Ours: the generator uses the statistics
of the batch in sampling too, where the port changes to running ones.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, information, statistics
from dfkt_jax.models import generator
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch, unlabelled


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

  synthesis_batch_size: int = 256  # images of one generator step
  latent: int = 256  # dimensions of the noise z
  generator_widths: tuple[int, ...] = (256, 128, 64)  # channels, coarse to fine
  generator_lr: float = 1e-3  # of Adam (paper, port)
  beta1: float = 0.5  # of Adam (port)
  beta2: float = 0.999  # of Adam (port)
  adversarial_weight: float = 1.0  # of KL(T || S) (paper, port)
  bn_weight: float = 1.0  # of the BatchNorm term (port)
  bn_form: Literal["norm", "gaussian_kl"] = "norm"  # port; paper
  instance_weight: float = 1.0  # of the sure-prediction term (port)
  instance_form: Literal["one_hot", "entropy"] = "one_hot"  # port; paper
  balance_weight: float = 20.0  # of the marginal entropy (port)

  transfer: ClassVar[Transfer] = Transfer(
    kd=KD(steps=80_000, lr=0.1, temperature=1.0),
    synthesis_steps=1,
    student_steps=10,
  )

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    """A freshly drawn generator.

    Raises:
      UsageError: the teacher has no BatchNorm but the BatchNorm term is on, or
        the adversarial term is on and there is no student.
    """
    self._check(teacher, student)
    network = generator.init(
      key, teacher.spec.shape, self.generator_widths, self.latent
    )
    return State(network, self._optimizer().init(network.params))

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """One Adam step of the generator."""
    gradient, info = jax.grad(self._loss, has_aux=True)(
      state.generator.params, key, state.generator, teacher, student
    )
    updates, opt_state = self._optimizer().update(gradient, state.opt_state)
    params = optax.apply_updates(state.generator.params, updates)
    return State(
      dataclasses.replace(state.generator, params=params), opt_state
    ), info

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    """Images of fresh noise; they aim at no class."""
    return unlabelled(generator.sample(key, state.generator, batch_size))

  def _loss(self, params, key, network, teacher, student):
    images = generator.sample(
      key,
      dataclasses.replace(network, params=params),
      self.synthesis_batch_size,
    )
    logits, taps = net.statistics(teacher, images)

    adversarial = bn_distance = jnp.float32(0.0)
    if self.adversarial_weight:
      adversarial = classification.kl(logits, net.logits(student, images))
    if self.bn_weight:
      distance = {
        "norm": statistics.norm_distance,
        "gaussian_kl": statistics.gaussian_kl,
      }[self.bn_form]
      bn_distance = distance(taps, teacher.batch_stats)
    instance = {
      "one_hot": classification.confidence,
      "entropy": information.entropy,
    }[self.instance_form](logits)
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

  def _check(self, teacher, student):
    if self.bn_weight and not teacher.batch_stats:
      raise UsageError(
        "dfq matches BatchNorm statistics and this teacher has no BatchNorm:"
        " give a teacher that has, or --bn-weight 0"
      )
    if self.adversarial_weight and student is None:
      raise UsageError(
        "dfq plays against a student: give --student NETWORK_DIR, or"
        " --adversarial-weight 0"
      )


# The paper's losses: Gaussian KL, entropies, one weight for all three, whose
# value is not certain (0.1, or 0.01 in a third party's code). Its networks, its
# long generator warm-up and its Nesterov momentum are not what `transfer` does.
PAPER = DFQ(
  latent=512,
  bn_form="gaussian_kl",
  instance_form="entropy",
  bn_weight=0.1,
  instance_weight=0.1,
  balance_weight=0.1,
)
