"""ZSKD: data impressions, images of Dirichlet-drawn soft labels.

  C(i, j) = cos(w_i, w_j), scaled to [0, 1] over the whole matrix
  y ~ Dirichlet(beta C(k, :))                    for every class k equally often
  x* = argmin_x  CE(y, softmax(T(x) / t))

w_k are the incoming weights of class unit k. Half of the images take the first
beta, half the second.

Source: Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML
2019. Defaults are the paper's, but for the learning rate (0.001 in the official
code, 0.01 in a third party's, as here). The class similarity scaled to [0, 1]
is 0 for the least similar pair, which no Dirichlet takes: 1e-4 is added.

Unlike the official code: both betas act (its sampler rescales every row after
multiplying by beta, so that 0.1 has no effect); every batch begins with fresh
noise (it goes on from the last batch of the class); soft labels are fixed.
The cross-entropy is a KL divergence here: the gradient is the same up to t^2.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from dfkt_jax import tails
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.network import Network
from dfkt_jax.synthesis import targets
from dfkt_jax.synthesis.contract import Batch
from dfkt_jax.synthesis.target_fitting import Info, State, TargetFitting


@dataclasses.dataclass(frozen=True)
class ZSKD:
  """Hyper-parameters; defaults are the paper's for MNIST."""

  synthesis_batch_size: int = 100  # images optimised together (paper)
  betas: tuple[float, ...] = (1.0, 0.1)  # concentrations, shared out evenly
  fitting: TargetFitting = TargetFitting(pixels="rescale")

  # 24,000 impressions of 1,500 steps, then 500 epochs of batch 64.
  transfer: ClassVar[Transfer] = Transfer(
    kd=KD(
      steps=187_500,
      optimizer="adam",
      lr=1e-3,
      weight_decay=0.0,
      temperature=20.0,
      target="stored",
      crop_padding=3,
      flip=True,
      rotation=90.0,
      shrink=0.4,
      noise=0.1,
      salt_and_pepper=0.05,
    ),
    batch_size=64,
    synthesis_steps=1500,
    student_steps=375,
    pool_size=24_000,
    offline=True,
  )

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    """Soft labels of every class equally often, and noise."""
    label_key, image_key = jax.random.split(key)
    logits = self.soft_labels(label_key, teacher)
    return self.fitting.init(image_key, logits, teacher)

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """One Adam step on the pixels."""
    return self.fitting.step(key, state, teacher)

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    return self.fitting.sample(key, state, batch_size)

  def soft_labels(self, key: jax.Array, teacher: Network) -> jax.Array:
    """f32[synthesis_batch_size, classes]: t log y, logits at temperature t."""
    class_key, beta_key, draw_key = jax.random.split(key, 3)
    similarity = class_similarity(teacher)
    classes = targets.balanced(
      class_key, self.synthesis_batch_size, len(similarity)
    )
    # Classes come in random order, so each beta meets all of them.
    # The first of them is random, for batches smaller than there are betas.
    first = jax.random.randint(beta_key, (), 0, len(self.betas))
    which = (first + jnp.arange(len(classes))) % len(self.betas)
    beta = jnp.asarray(self.betas)[which]
    concentration = beta[:, None] * similarity[classes] + 1e-4
    # log y of a Dirichlet, without the underflow of y itself.
    log_gamma = jax.random.loggamma(draw_key, concentration)
    return self.fitting.target_temperature * jax.nn.log_softmax(log_gamma)


def class_similarity(teacher: Network) -> jax.Array:
  """C, f32[classes, classes] in [0, 1], from the last linear layer."""
  head = [layer for layer in tails.layers(teacher) if not layer.is_norm][-1]
  weights = tails.kernel(teacher, head)
  norms = jnp.linalg.norm(weights, axis=0, keepdims=True)
  weights = weights / jnp.maximum(norms, 1e-12)
  cosine = weights.T @ weights
  spread = jnp.maximum(cosine.max() - cosine.min(), 1e-12)
  return (cosine - cosine.min()) / spread
