"""Images optimised until the teacher answers with given soft labels.

  x* = argmin_x  t^2 KL(y || softmax(T(x) / t))
                 - w_act mean |f(x)|
                 + w_tv TV(x) + w_sum sum |x|

y are fixed soft labels, f the penultimate features. What data impressions
(Nayak et al., ICML 2019) and soft-targeted transfer sets (Wang, AAAI 2021) have
in common; they differ in where y comes from. The last line is the image prior,
ours and off by default: total variation (Rudin et al. 1992) and darkness. With
`start="shapes"` it also says where the search begins: at smooth random shapes
with smooth random shading on black, a statistical image model in the spirit of
Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021, which holds
no image of any kind.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.losses import classification, image_prior
from dfkt_jax.network import InputSpec, Network
from dfkt_jax.synthesis.contract import Batch


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
  jitter: int = 0  # pixels an image is rolled by before the teacher sees it
  pixels: Literal["clip", "rescale"] = "clip"  # how they stay in [0, 1]

  def init(
    self, key: jax.Array, soft_labels: jax.Array, spec: InputSpec
  ) -> State:
    """Noise or shapes for f32[batch, classes] logits."""
    if self.start == "shapes":
      images = smooth_shapes(key, len(soft_labels), spec.shape)
    else:
      shape = (len(soft_labels), *spec.shape)
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


def smooth_shapes(
  key: jax.Array, count: int, shape: tuple[int, int, int]
) -> jax.Array:
  """f32[count, height, width, channels] in [0, 1]: shaded shapes on black.

  A shape is where smooth noise is high, with an edge of random sharpness; its
  shading is a sigmoid of other smooth noise, a level of its own for each
  channel.
  """
  *size, channels = shape
  keys = jax.random.split(key, 6)
  outline = _any_smooth_noise(keys[0], count, size, (2, 3, 4, 5))
  offset = 0.5 * jax.random.normal(keys[1], (count, 1, 1, 1))
  sharpness = jnp.exp(1.5 + jax.random.normal(keys[2], (count, 1, 1, 1)))
  mask = jax.nn.sigmoid(sharpness * (outline + offset))
  texture = _any_smooth_noise(keys[3], count, size, (2, 4, 7, 14))
  contrast = 2.0 * jax.random.uniform(keys[4], (count, 1, 1, channels))
  level = 1.5 * jax.random.normal(keys[5], (count, 1, 1, channels))
  return mask * jax.nn.sigmoid(contrast * texture + level)


def _any_smooth_noise(key, count, size, cells):
  """Smooth noise, of one of so many cells for each image."""
  *keys, which_key = jax.random.split(key, len(cells) + 1)
  scales = [
    augment.smooth_noise(k, count, size, c) for k, c in zip(keys, cells)
  ]
  which = jax.random.randint(which_key, (1, count, 1, 1, 1), 0, len(cells))
  return jnp.take_along_axis(jnp.stack(scales), which, axis=0)[0]
