"""Target fitting: images optimized until the teacher predicts soft labels.

  x* = argmin_x  t^2 KL(y || softmax(T(x) / t))
                 - w_act mean |f(x)|
                 + w_tv TV(x) + w_sum sum |x|

y are fixed soft labels, f the penultimate features. This is common to data
impressions (Nayak et al., ICML 2019) and soft-targeted transfer sets (Wang,
AAAI 2021), which differ in the origin of y. The last line is the image prior,
ours and off by default: total variation (Rudin et al. 1992) and darkness. With
`start="shapes"` the search also begins at images of a prior, shaded shapes on
black (`shapes`): among many candidates, each soft label gets the one whose
prediction diverges least from it.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, NonNegative, Positive, Share
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import classification, image_prior
from dfkt_jax.network import Classification, Network
from dfkt_jax.synthesis.shapes import shaded_shapes
from dfkt_jax.synthesis.subsets import subset


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
  """Hyper-parameters of fitting images to soft labels."""

  # of Adam, in pixel units
  image_lr: Annotated[float, NonNegative] = 0.01
  beta1: Annotated[float, NonNegative] = 0.9  # of Adam
  beta2: Annotated[float, NonNegative] = 0.999  # of Adam
  # t, of the soft labels while fitting
  target_temperature: Annotated[float, Positive] = 20.0
  activation_weight: Annotated[float, NonNegative] = 0.0  # w_act
  tv_weight: Annotated[float, NonNegative] = 0.0  # w_tv, per pixel difference
  sum_weight: Annotated[float, NonNegative] = 0.0  # w_sum, per pixel
  # the images before the first step
  start: Literal["noise", "shapes"] = "noise"
  # noise is uniform between 0 and this
  start_level: Annotated[float, Share] = 1.0
  # shapes drawn for each image, of which the nearest starts
  candidates: Annotated[int, Positive] = 1
  # largest offset of an image before the teacher, in pixels
  jitter: Annotated[int, NonNegative] = 0
  pixels: Literal["clip", "rescale"] = "clip"  # keeps them in [0, 1]

  def init(
    self, key: jax.Array, soft_labels: jax.Array, teacher: Network
  ) -> State:
    """Draw the first images for f32[batch, classes] logits."""
    if self.start == "shapes":
      images = self._nearest_shapes(key, soft_labels, teacher)
    else:
      shape = (len(soft_labels), *teacher.spec.shape)
      images = self.start_level * jax.random.uniform(key, shape)
    images = shard(images)
    opt_state = shard(self._optimizer().init(images))
    return State(images, shard(soft_labels), opt_state)

  def step(
    self, key: jax.Array, state: State, teacher: Network
  ) -> tuple[State, Info]:
    """Take an Adam step on the pixels; the soft labels stay."""
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
    return state._replace(images=images, opt_state=opt_state), info

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return all images, or a random `count` of them if that is fewer."""
    # Soft labels are always of classes; the teacher's task is not known here.
    task = Classification(state.soft_labels.shape[1])
    labels = task.decisions(state.soft_labels)
    return subset(key, Batch(state.images, labels, state.soft_labels), count)

  def _nearest_shapes(self, key, soft_labels, teacher):
    """Return for each soft label the nearest of `candidates` batches of shapes.

    Nearest is the shape whose prediction has the least cross-entropy.
    """
    t = self.target_temperature
    targets = jax.nn.softmax(soft_labels / t)

    def draw(carry, key):
      images, cross_entropy = carry
      shapes = shaded_shapes(key, len(targets), teacher.spec.shape)
      log_q = jax.nn.log_softmax(net.logits(teacher, shapes) / t)
      # [soft labels, shapes]. The divergence is this less the entropy of the
      # soft label, which is the same for all shapes.
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
    view = images
    if self.jitter:
      view = augment.jitter_each(key, images, self.jitter)
    logits, taps = net.features(teacher, view)
    divergence = classification.kl(
      soft_labels, logits, self.target_temperature
    ).mean()
    features = net.require_feature(taps, "penultimate", teacher)
    activation = jnp.abs(features).mean()
    total_variation = image_prior.neighbour_sum(images).mean()
    pixel_sum = image_prior.pixel_sum(images).mean()
    loss = (
      divergence
      - self.activation_weight * activation
      + self.tv_weight * total_variation
      + self.sum_weight * pixel_sum
    )
    agreement = teacher.spec.task.agreement(soft_labels, logits).mean()
    return loss, Info(
      loss, divergence, activation, total_variation, pixel_sum, agreement
    )

  def _optimizer(self):
    return optax.adam(self.image_lr, b1=self.beta1, b2=self.beta2)
