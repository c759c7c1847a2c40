"""The synthesizer of the `round` workload: a generator and its latents.

  L = 10 L_bn + 1/2 CE(T(x), y) - 4/3 mean_i [T and S agree on i] KL(T || S)_i

over augmented images x of G(z), minimized over G and z. The raw images of the
lowest loss are stored in the replay buffer; a batch begins with new latents,
labels and moments of Adam, and the generator is kept.

Source: `../shared/bench/torch_reference.py`, whose speed this is compared with.
The method is that of Fang et al., "Up to 100x Faster Data-Free Knowledge
Distillation", AAAI 2022, without its meta-learned start, and of "Contrastive
Model Inversion", IJCAI 2021, without its contrastive term.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import classification, statistics
from dfkt_jax.models import generator
from dfkt_jax.models.generator import GeneratorNetwork


class State(NamedTuple):
  """The generator, and the batch that it is working on."""

  generator: GeneratorNetwork
  latents: jax.Array  # f32[batch, latent]
  labels: jax.Array  # i32[batch]
  opt_states: tuple[optax.OptState, optax.OptState]  # of generator, latents
  best_images: jax.Array  # f32[batch, height, width, channels] in [0, 1]
  best_loss: jax.Array  # f32[]


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  bn_distance: jax.Array
  cross_entropy: jax.Array
  adversarial: jax.Array


@dataclasses.dataclass(frozen=True)
class LatentGenerator:
  """Hyper-parameters; the defaults are those of the reference."""

  synthesis_batch_size: int = 128
  latent: int = 256
  generator_widths: tuple[int, ...] = (128, 128, 64)
  generator_lr: float = 4e-3  # of Adam
  latent_lr: float = 0.01  # of Adam
  beta1: float = 0.5
  beta2: float = 0.999
  bn_weight: float = 10.0
  class_weight: float = 0.5
  adversarial_weight: float = 1.33
  crop_padding: int = 4
  precision: str = "f32"  # of the generator's layers: f32 or bf16

  def init(self, key: jax.Array, context: Context) -> State:
    """Draw a generator, and begin its first batch."""
    generator_key, key = jax.random.split(key)
    shape = context.teacher.spec.shape
    network = generator.init(
      generator_key, shape, self.generator_widths, self.latent
    )
    if self.precision == "bf16":
      module = network.module.clone(dtype=jnp.bfloat16)
      network = dataclasses.replace(network, module=module)
    return self._begin(key, network, context.teacher)

  def restart(self, key: jax.Array, state: State, context: Context) -> State:
    """Begin the next batch, with the same generator."""
    return self._begin(key, state.generator, context.teacher)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take one Adam step of the generator and of the latents."""
    leaves = (state.generator.params, state.latents)
    gradients, (raw, info) = jax.grad(self._loss, has_aux=True)(
      leaves, key, state, context.teacher, context.student
    )
    moved, opt_states = [], []
    for optimizer, leaf, gradient, opt_state in zip(
      self._optimizers(), leaves, gradients, state.opt_states
    ):
      updates, opt_state = optimizer.update(gradient, opt_state)
      moved.append(optax.apply_updates(leaf, updates))
      opt_states.append(opt_state)
    # The loss belongs to the images before this step.
    better = info.loss < state.best_loss
    return State(
      dataclasses.replace(state.generator, params=moved[0]),
      moved[1],
      state.labels,
      tuple(opt_states),  # type: ignore
      jnp.where(better, raw, state.best_images),
      jnp.where(better, info.loss, state.best_loss),
    ), info

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return the first `count` of the best images."""
    return Batch(state.best_images[:count], state.labels[:count])

  def _begin(self, key, network, teacher):
    latent_key, label_key = jax.random.split(key)
    count, spec = self.synthesis_batch_size, teacher.spec
    latents, labels, best_images = shard(
      (
        jax.random.normal(latent_key, (count, self.latent)),
        jax.random.randint(label_key, (count,), 0, spec.classes),
        jnp.zeros((count, *spec.shape)),
      )
    )
    generator_optimizer, latent_optimizer = self._optimizers()
    opt_states = (
      generator_optimizer.init(network.params),
      shard(latent_optimizer.init(latents)),
    )
    best_loss = jnp.float32(jnp.inf)
    return State(network, latents, labels, opt_states, best_images, best_loss)

  def _loss(self, leaves, key, state, teacher, student):
    params, latents = leaves
    network = dataclasses.replace(state.generator, params=params)
    raw = generator.generate(network, latents)
    images = augment.crop_and_flip(key, raw, self.crop_padding, True)
    logits, taps = net.statistics(teacher, images)
    student_logits = net.logits(student, images)

    bn_distance = statistics.norm_distance(taps, teacher.batch_stats)
    cross_entropy = classification.cross_entropy(logits, state.labels).mean()
    agree = logits.argmax(1) == student_logits.argmax(1)
    divergence = classification.kl(logits, student_logits)
    adversarial = jnp.where(agree, divergence, 0.0).mean()
    loss = (
      self.bn_weight * bn_distance
      + self.class_weight * cross_entropy
      - self.adversarial_weight * adversarial
    )
    return loss, (raw, Info(loss, bn_distance, cross_entropy, adversarial))

  def _optimizers(self):
    return tuple(
      optax.adam(lr, b1=self.beta1, b2=self.beta2)
      for lr in (self.generator_lr, self.latent_lr)
    )
