"""MosaicKD: real patches, put together into what the teacher knows.

  min_D  BCE(D(x), 1) + BCE(D(G(z)), 0)
  min_G  - w_adv KL(T || S) + w_align H(T) + w_local BCE(D(G(z)), 1)
         - w_balance H(E[T])                      on G(z), z ~ N(0, I)
  min_S  KL(T || S)                               on G(z) and x together

D judges patches of the unlabelled images x: the texture of another world is as
good as the task's own, only its arrangement is not, and that the teacher tells.
BCE is the sum over an image's patches, H(E[T]) in bits, as released.

Source: Fang et al., "Mosaicking to Distill: Knowledge Distillation from
Out-of-Domain Data", NeurIPS 2021, and its released code, of which the defaults
are: one step of D and of G, then five of the student. x are the images with the
highest entropy of the teacher's prediction. As released, D sees x as it is and
the student x augmented; ours: fresh images of the generator are augmented with
it, and the rates of G and D fall along the student's cosine.
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
from dfkt_jax.losses import classification, information
from dfkt_jax.models import discriminator, generator
from dfkt_jax.models.discriminator import DiscriminatorNetwork
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.network import Network
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.scoring import Scores
from dfkt_jax.openworld.selection import Selection
from dfkt_jax.synthesis.contract import unlabelled


class State(NamedTuple):
  learner: distillation.State
  generator: GeneratorNetwork
  generator_opt_state: optax.OptState
  discriminator: DiscriminatorNetwork
  discriminator_opt_state: optax.OptState
  progress: jax.Array  # f32[], the share of the student's steps that is done


class AdversaryInfo(NamedTuple):
  """Loss terms before weighting."""

  loss: jax.Array  # of the generator, weighted
  adversarial: jax.Array  # KL(teacher || student), which the generator raises
  entropy: jax.Array
  local: jax.Array
  marginal_entropy: jax.Array  # in bits
  discriminator: jax.Array


@dataclasses.dataclass(frozen=True)
class MosaicKD:
  """Hyper-parameters; defaults are the released ones."""

  latent: int = 100  # dimensions of the noise z
  generator_widths: tuple[int, ...] = (256, 256, 128)  # coarse to fine
  discriminator_widths: tuple[int, ...] = (128, 256)
  adversary_lr: float = 1e-3  # of Adam on G and on D
  beta1: float = 0.5  # of Adam
  adversarial_weight: float = 1.0
  align_weight: float = 1.0
  local_weight: float = 1.0
  balance_weight: float = 10.0

  # 200 epochs of 50,000 images.
  study: ClassVar[Study] = Study(
    kd=KD(steps=196_000, lr=0.1, weight_decay=1e-4, crop_padding=4, flip=True),
    batch_size=256,
    student_steps=5,
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """The highest entropies: what is least like the teacher's data."""
    index = np.argsort(-scores.entropy, kind="stable")[:count]
    return Selection(index, scores.entropy[index])

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network,
    kd: KD,
    summary: Any,
  ) -> State:
    """Fresh networks.

    Raises:
      UsageError: no generator of these widths makes the teacher's images.
    """
    keys = jax.random.split(key)
    shape = teacher.spec.shape
    g = generator.init(keys[0], shape, self.generator_widths, self.latent)
    d = discriminator.init(keys[1], shape, self.discriminator_widths)
    adam = self._optimizer()
    return State(
      kd.init(student),
      g,
      adam.init(g.params),
      d,
      adam.init(d.params),
      jnp.float32(0.0),
    )

  def adversary_step(
    self, key: jax.Array, state: State, images: jax.Array, teacher: Network
  ) -> tuple[State, AdversaryInfo]:
    """One step of the discriminator, then one of the generator."""
    g, d = state.generator, state.discriminator
    fake = generator.sample(key, g, len(images))
    d_loss, gradient = jax.value_and_grad(self._discriminator_loss)(
      d.params, d, images, fake
    )
    d_params, d_opt_state = self._update(
      gradient, state.discriminator_opt_state, d.params, state.progress
    )
    d = dataclasses.replace(d, params=d_params)
    gradient, info = jax.grad(self._generator_loss, has_aux=True)(
      g.params, key, g, len(images), d, teacher, state.learner.student
    )
    g_params, g_opt_state = self._update(
      gradient, state.generator_opt_state, g.params, state.progress
    )
    state = state._replace(
      generator=dataclasses.replace(g, params=g_params),
      generator_opt_state=g_opt_state,
      discriminator=d,
      discriminator_opt_state=d_opt_state,
    )
    return state, info._replace(discriminator=d_loss)

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    teacher: Network,
    kd: KD,
  ) -> tuple[State, distillation.Info]:
    """One student step on as many fresh images as there are real ones."""
    draw_key, kd_key = jax.random.split(key)
    fake = self.sample(draw_key, state, len(images))
    batch = unlabelled(jnp.concatenate([fake, images]))
    learner, info = kd.step(kd_key, state.learner, batch, teacher)
    progress = state.progress + 1.0 / kd.steps
    return state._replace(learner=learner, progress=progress), info

  def sample(self, key: jax.Array, state: State, count: int) -> jax.Array:
    """Images of fresh noise, f32[count, height, width, channels]."""
    return generator.sample(key, state.generator, count)

  def student(self, state: State) -> Network:
    return state.learner.student

  def _discriminator_loss(self, params, network, real, fake):
    network = dataclasses.replace(network, params=params)
    on_real = discriminator.logits(network, real)
    on_fake = discriminator.logits(network, fake)
    return _patches(jax.nn.softplus(-on_real)) + _patches(
      jax.nn.softplus(on_fake)
    )

  def _generator_loss(self, params, key, network, count, d, teacher, student):
    network = dataclasses.replace(network, params=params)
    images = generator.sample(key, network, count)
    logits = net.logits(teacher, images)
    adversarial = classification.kl(logits, net.logits(student, images))
    entropy = information.entropy(logits)
    local = _patches(jax.nn.softplus(-discriminator.logits(d, images)))
    marginal_entropy = information.marginal_entropy(logits) / jnp.log(2.0)
    loss = (
      -self.adversarial_weight * adversarial
      + self.align_weight * entropy
      + self.local_weight * local
      - self.balance_weight * marginal_entropy
    )
    info = AdversaryInfo(
      loss, adversarial, entropy, local, marginal_entropy, jnp.float32(0.0)
    )
    return loss, info

  def _update(self, gradient, opt_state, params, progress):
    updates, opt_state = self._optimizer().update(gradient, opt_state)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    updates = jax.tree.map(lambda u: cosine * u, updates)
    return optax.apply_updates(params, updates), opt_state

  def _optimizer(self):
    return optax.adam(self.adversary_lr, b1=self.beta1, b2=0.999)


def _patches(losses):
  """Sum over an image's patches, mean over the batch."""
  return losses.sum((1, 2)).mean()
