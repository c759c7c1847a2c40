"""The method of the `round` workload: a generator and its latents, best kept.

  L = 10 L_bn + 1/2 CE(T(x), y) - 4/3 mean_i [T and S agree on i] KL(T || S)_i

over augmented images x of G(z), minimised over G and z. The raw images of the
lowest loss go to the pool; a batch begins with new latents, labels and moments,
the generator goes on. So do Fang et al., "Up to 100x Faster Data-Free Knowledge
Distillation", AAAI 2022, without its meta-learned start, and "Contrastive Model
Inversion", IJCAI 2021, without its contrastive term; this one is as
`../shared/bench/torch_reference.py` has it, and there to be timed.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.losses import classification, statistics
from dfkt_jax.models import generator
from dfkt_jax.models.generator import GeneratorNetwork
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch


class State(NamedTuple):
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
  """Hyper-parameters; defaults are the reference's."""

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

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    generator_key, key = jax.random.split(key)
    shape = teacher.spec.shape
    network = generator.init(
      generator_key, shape, self.generator_widths, self.latent
    )
    if self.precision == "bf16":
      module = network.module.clone(dtype=jnp.bfloat16)
      network = dataclasses.replace(network, module=module)
    return self._begin(key, network, teacher)

  def restart(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> State:
    """The next batch, of the same generator."""
    return self._begin(key, state.generator, teacher)

  def step(
    self, key: jax.Array, state: State, teacher: Network, student: Network
  ) -> tuple[State, Info]:
    """One Adam step of the generator and of the latents."""
    leaves = (state.generator.params, state.latents)
    gradients, (raw, info) = jax.grad(self._loss, has_aux=True)(
      leaves, key, state, teacher, student
    )
    moved, opt_states = [], []
    for optimizer, leaf, gradient, opt_state in zip(
      self._optimizers(), leaves, gradients, state.opt_states
    ):
      updates, opt_state = optimizer.update(gradient, opt_state)
      moved.append(optax.apply_updates(leaf, updates))
      opt_states.append(opt_state)
    # The loss is that of the images before this step.
    better = info.loss < state.best_loss
    return State(
      dataclasses.replace(state.generator, params=moved[0]),
      moved[1],
      state.labels,
      tuple(opt_states),  # type: ignore
      jnp.where(better, raw, state.best_images),
      jnp.where(better, info.loss, state.best_loss),
    ), info

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    """The first so many of the best images."""
    return Batch(state.best_images[:batch_size], state.labels[:batch_size])

  def _begin(self, key, network, teacher):
    latent_key, label_key = jax.random.split(key)
    count, spec = self.synthesis_batch_size, teacher.spec
    latents, labels, best_images = parallel.split(
      (
        jax.random.normal(latent_key, (count, self.latent)),
        jax.random.randint(label_key, (count,), 0, spec.classes),
        jnp.zeros((count, *spec.shape)),
      )
    )
    of_generator, of_latents = self._optimizers()
    opt_states = (
      of_generator.init(network.params),
      parallel.split(of_latents.init(latents)),
    )
    best_loss = jnp.float32(jnp.inf)
    return State(network, latents, labels, opt_states, best_images, best_loss)

  def _loss(self, leaves, key, state, teacher, student):
    params, latents = leaves
    network = dataclasses.replace(state.generator, params=params)
    raw = generator.generate(network, latents)
    images = augment.crop_and_flip(key, raw, self.crop_padding, True)
    logits, taps = net.statistics(teacher, images)
    theirs = net.logits(student, images)

    bn_distance = statistics.norm_distance(taps, teacher.batch_stats)
    cross_entropy = classification.cross_entropy(logits, state.labels)
    agree = logits.argmax(1) == theirs.argmax(1)
    log_t, log_s = jax.nn.log_softmax(logits), jax.nn.log_softmax(theirs)
    divergence = (jnp.exp(log_t) * (log_t - log_s)).sum(1)
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
