"""Images optimised until the teacher answers with given soft labels.

  x* = argmin_x  t^2 KL(y || softmax(T(x) / t))
                 - w_act mean |f(x)|
                 + w_tv TV(x) + w_sum sum |x|

y are fixed soft labels, f the penultimate features. What data impressions
(Nayak et al., ICML 2019) and soft-targeted transfer sets (Wang, AAAI 2021) have
in common; they differ in where y comes from. The last line is the image prior,
ours and off by default: total variation (Rudin et al. 1992) and darkness. With
`start="shapes"` the prior is also where the search begins: at shaded shapes on
black (`shapes`), of which each soft label is given the one of many candidates
whose answer diverges least from it.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.losses import classification, image_prior
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Batch
from dfkt_jax.synthesis.shapes import shaded_shapes


class State(NamedTuple):
  images: jax.Array  # f32[batch, height, width, channels] in [0, 1]
  soft_labels: jax.Array  # f32[batch, classes], logits; they never change
  opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  divergence: jax.Array
  activation: jax.Array
  total_variation: jax.Array
  pixel_sum: jax.Array
  agreement: jax.Array  # share of images whose top class is the soft label's


@dataclasses.dataclass(frozen=True)
class TargetFitting:
  """How images are fitted to soft labels."""

  image_lr: float = 0.01  # of Adam, in pixel units
  beta1: float = 0.9  # of Adam
  beta2: float = 0.999  # of Adam
  target_temperature: float = 20.0  # t, of the soft labels while fitting
  activation_weight: float = 0.0  # w_act
  tv_weight: float = 0.0  # w_tv, a pixel difference
  sum_weight: float = 0.0  # w_sum, a pixel
  start: Literal["noise", "shapes"] = "noise"  # what an image begins as
  start_level: float = 1.0  # noise is uniform between 0 and this
  candidates: int = 1  # shapes for each image; the nearest answer begins
  jitter: int = 0  # pixels an image is rolled by before the teacher sees it
  pixels: Literal["clip", "rescale"] = "clip"  # how they stay in [0, 1]

  def init(
    self, key: jax.Array, soft_labels: jax.Array, teacher: Network
  ) -> State:
    """Where images for f32[batch, classes] logits begin."""
    if self.start == "shapes":
      images = self._nearest_shapes(key, soft_labels, teacher)
    else:
      shape = (len(soft_labels), *teacher.spec.shape)
      images = self.start_level * jax.random.uniform(key, shape)
    images = parallel.split(images)
    opt_state = parallel.split(self._optimizer().init(images))
    return State(images, parallel.split(soft_labels), opt_state)

  def step(
    self, key: jax.Array, state: State, teacher: Network
  ) -> tuple[State, Info]:
    """One Adam step on the pixels; the soft labels stay as they are."""
    gradient, info = jax.grad(self._loss, has_aux=True)(
      state.images, key, state.soft_labels, teacher
    )
    updates, opt_state = self._optimizer().update(gradient, state.opt_state)
    images = state.images + updates  # type: ignore
    if self.pixels == "rescale":
      low, high = images.min(), images.max()
      images = (images - low) / jnp.maximum(high - low, 1e-6)
    else:
      images = jnp.clip(images, 0.0, 1.0)
    return State(images, state.soft_labels, opt_state), info

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    """The images as they are, or `batch_size` of them where that is fewer."""
    labels = state.soft_labels.argmax(1).astype(jnp.int32)
    if batch_size >= len(labels):
      return Batch(state.images, labels, state.soft_labels)
    chosen = jax.random.permutation(key, len(labels))[:batch_size]
    return Batch(
      state.images[chosen], labels[chosen], state.soft_labels[chosen]
    )

  def _nearest_shapes(self, key, soft_labels, teacher):
    """For each soft label the best of `candidates` batches of shapes."""
    t = self.target_temperature
    targets = jax.nn.softmax(soft_labels / t)

    def draw(carry, key):
      images, cross_entropy = carry
      shapes = shaded_shapes(key, len(targets), teacher.spec.shape)
      log_q = jax.nn.log_softmax(net.logits(teacher, shapes) / t)
      # Of every soft label with every shape. The entropy of the soft label,
      # which would make it a divergence, is the same for all shapes.
      found = -targets @ log_q.T
      nearest, which = found.min(1), found.argmin(1)
      closer = (nearest < cross_entropy)[:, None, None, None]
      images = jnp.where(closer, shapes[which], images)
      return (images, jnp.minimum(nearest, cross_entropy)), None

    nothing = jnp.zeros((len(targets), *teacher.spec.shape))
    far = jnp.full(len(targets), jnp.inf)
    keys = jax.random.split(key, self.candidates)
    (images, _), _ = jax.lax.scan(draw, (nothing, far), keys)
    return images

  def _loss(self, images, key, soft_labels, teacher):
    seen = images
    if self.jitter:
      seen = augment.jitter_each(key, images, self.jitter)
    logits, taps = net.features(teacher, seen)
    divergence = classification.kl(soft_labels, logits, self.target_temperature)
    activation = jnp.abs(taps["penultimate"]).mean()
    total_variation = image_prior.neighbour_sum(images)
    pixel_sum = image_prior.pixel_sum(images)
    loss = (
      divergence
      - self.activation_weight * activation
      + self.tv_weight * total_variation
      + self.sum_weight * pixel_sum
    )
    agreement = (logits.argmax(1) == soft_labels.argmax(1)).mean()
    return loss, Info(
      loss, divergence, activation, total_variation, pixel_sum, agreement
    )

  def _optimizer(self):
    return optax.adam(self.image_lr, b1=self.beta1, b2=self.beta2)
