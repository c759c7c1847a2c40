"""ZSKD: data impressions, images of Dirichlet-drawn soft labels.

  C(i, j) = cos(w_i, w_j), scaled to [0, 1] over the whole matrix
  y ~ Dirichlet(beta C(k, :))                    for every class k equally often
  x* = argmin_x  CE(y, softmax(T(x) / t))

w_k are the incoming weights of class unit k. Half of the images take the first
beta, half the second.

Source: Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML
2019. Defaults are the paper's except for the learning rate (0.001 in the
official code, 0.01 in a third party's, as here). The class similarity scaled to
[0, 1] is 0 for the least similar pair, where no Dirichlet distribution is
defined: 1e-4 is added.

Unlike the official code: both betas have an effect (its sampler rescales every
row after multiplying by beta, so that 0.1 has none); every batch starts from
new noise (its batches continue from the last batch of the class); soft labels
are fixed. The cross-entropy is a KL divergence here: the gradient is the same
up to t^2.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Batch, Context, Positive
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.network import Network, layers
from dfkt_jax.synthesis import targets
from dfkt_jax.synthesis.target_fitting import Info, State, TargetFitting


@dataclasses.dataclass(frozen=True)
class ZSKD:
  """Hyper-parameters; defaults are the paper's for MNIST."""

  # images optimized together (paper)
  synthesis_batch_size: Annotated[int, Positive] = 100
  # concentrations, of equally many images each
  betas: Annotated[tuple[float, ...], Positive] = (1.0, 0.1)
  # of the images to the soft labels
  fitting: TargetFitting = TargetFitting(pixels="rescale")

  # 24,000 impressions of 1,500 steps, then 500 epochs of batch 64.
  recipe: ClassVar[Recipe] = Recipe(
    steps=187_500,
    batch_size=64,
    synthesis_steps=1500,
    student_steps=375,
    memory_size=24_000,
    offline=True,
  )
  learner: ClassVar[KD] = KD(
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
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Draw soft labels, every class equally often, and noise."""
    label_key, image_key = jax.random.split(key)
    logits = self.soft_labels(label_key, context.teacher)
    return self.fitting.init(image_key, logits, context.teacher)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take an Adam step on the pixels."""
    return self.fitting.step(key, state, context.teacher)

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return all images, or a random `count` of them if that is fewer."""
    return self.fitting.sample(key, state, count)

  def soft_labels(self, key: jax.Array, teacher: Network) -> jax.Array:
    """Draw f32[synthesis_batch_size, classes]: t log y, logits at t."""
    class_key, beta_key, draw_key = jax.random.split(key, 3)
    similarity = class_similarity(teacher)
    classes = targets.balanced(
      class_key, self.synthesis_batch_size, len(similarity)
    )
    # Classes come in random order, so each beta meets all of them. The first
    # beta is random, for batches of fewer images than there are betas.
    first = jax.random.randint(beta_key, (), 0, len(self.betas))
    which = (first + jnp.arange(len(classes))) % len(self.betas)
    beta = jnp.asarray(self.betas)[which]
    concentration = beta[:, None] * similarity[classes] + 1e-4
    # log y of a Dirichlet, without the underflow of y itself.
    log_gamma = jax.random.loggamma(draw_key, concentration)
    return self.fitting.target_temperature * jax.nn.log_softmax(log_gamma)


def class_similarity(teacher: Network) -> jax.Array:
  """Return C, f32[classes, classes] in [0, 1], from the last linear layer."""
  head = [layer for layer in layers.list_layers(teacher) if not layer.is_norm][
    -1
  ]
  weights = layers.kernel(teacher, head)
  norms = jnp.linalg.norm(weights, axis=0, keepdims=True)
  weights = weights / jnp.maximum(norms, 1e-12)
  cosine = weights.T @ weights
  spread = jnp.maximum(cosine.max() - cosine.min(), 1e-12)
  return (cosine - cosine.min()) / spread
