"""MosaicKD: real patches, put together into images that the teacher knows.

  min_D  BCE(D(x), 1) + BCE(D(G(z)), 0)
  min_G  - w_adv KL(T || S) + w_align H(T) + w_local BCE(D(G(z)), 1)
         - w_balance H(E[T])                      on G(z), z ~ N(0, I)
  min_S  KL(T || S)                               on G(z) and x together

D judges patches of the unlabeled images x: textures of another domain are as
useful as the task's own, only their arrangement is not, and the teacher judges
that. BCE is the sum over an image's patches; H(E[T]) is in bits, as released.

Source: Fang et al., "Mosaicking to Distill: Knowledge Distillation from
Out-of-Domain Data", NeurIPS 2021, and its released code, whose values are the
defaults: one step of D and of G, then five of the student. x are the images
with the highest entropy of the teacher's prediction. As released, D sees x
without augmentation and the student sees x augmented. Deviations: fresh images
of the generator are augmented with x, and the rates of G and D fall along a
cosine over the run, as the student's does.

The method is a selector and a synthesizer. One `step` is one of D and one of G
on a batch of x; the student then learns from x and from as many fresh images.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfkt_jax import network as net
from dfkt_jax.contracts import (
  Batch,
  Context,
  NonNegative,
  Positive,
  Scores,
  Selection,
  unlabelled,
)
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.losses import classification, information
from dfkt_jax.models import discriminator, generator
from dfkt_jax.models.discriminator import DiscriminatorNetwork
from dfkt_jax.models.generator import GeneratorNetwork


class State(NamedTuple):
  generator: GeneratorNetwork
  generator_opt_state: optax.OptState
  discriminator: DiscriminatorNetwork
  discriminator_opt_state: optax.OptState


class Info(NamedTuple):
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

  latent: Annotated[int, Positive] = 100  # dimensions of the noise z
  # channels, coarse to fine
  generator_widths: Annotated[tuple[int, ...], Positive] = (256, 256, 128)
  # channels, each of which halves the image
  discriminator_widths: Annotated[tuple[int, ...], Positive] = (128, 256)
  adversary_lr: Annotated[float, NonNegative] = 1e-3  # of Adam on G and on D
  beta1: Annotated[float, NonNegative] = 0.5  # of Adam
  adversarial_weight: Annotated[float, NonNegative] = 1.0
  align_weight: Annotated[float, NonNegative] = 1.0
  local_weight: Annotated[float, NonNegative] = 1.0
  balance_weight: Annotated[float, NonNegative] = 10.0

  learner: ClassVar = KD(lr=0.1, weight_decay=1e-4, crop_padding=4, flip=True)
  # 200 epochs of 50,000 images.
  recipe: ClassVar[Recipe] = Recipe(
    steps=196_000, batch_size=256, student_steps=5
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """Select the highest entropies: images unlike those of the teacher."""
    index = np.argsort(-scores.entropy, kind="stable")[:count]
    return Selection(index, scores.entropy[index])

  def init(self, key: jax.Array, context: Context) -> State:
    """Return freshly drawn networks.

    Raises:
      UsageError: no generator of these widths makes the teacher's images, or no
        discriminator of these widths has a patch of them.
    """
    keys = jax.random.split(key)
    shape = context.teacher.spec.shape
    g = generator.init(keys[0], shape, self.generator_widths, self.latent)
    d = discriminator.init(keys[1], shape, self.discriminator_widths)
    adam = self._optimizer()
    return State(g, adam.init(g.params), d, adam.init(d.params))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take one step of the discriminator, then one of the generator.

    `context.batch` holds the real images; the fake ones are as many.
    """
    g, d = state.generator, state.discriminator
    real, progress = context.batch.images, context.progress
    fake = generator.sample(key, g, len(real))
    d_loss, gradient = jax.value_and_grad(self._discriminator_loss)(
      d.params, d, real, fake
    )
    d_params, d_opt_state = self._update(
      gradient, state.discriminator_opt_state, d.params, progress
    )
    d = dataclasses.replace(d, params=d_params)
    gradient, info = jax.grad(self._generator_loss, has_aux=True)(
      g.params, key, g, len(real), d, context.teacher, context.student
    )
    g_params, g_opt_state = self._update(
      gradient, state.generator_opt_state, g.params, progress
    )
    state = State(
      dataclasses.replace(g, params=g_params), g_opt_state, d, d_opt_state
    )
    return state, info._replace(discriminator=d_loss)

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return images of fresh noise, without labels."""
    return unlabelled(generator.sample(key, state.generator, count))

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
    adversarial = classification.kl(logits, net.logits(student, images)).mean()
    entropy = information.entropy(logits).mean()
    local = _patches(jax.nn.softplus(-discriminator.logits(d, images)))
    marginal_entropy = information.marginal_entropy(logits) / jnp.log(2.0)
    loss = (
      -self.adversarial_weight * adversarial
      + self.align_weight * entropy
      + self.local_weight * local
      - self.balance_weight * marginal_entropy
    )
    info = Info(
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
  """Sum over an image's patches and average over the batch."""
  return losses.sum((1, 2)).mean()
