"""The loss of an inversion: lowest at images like the teacher's training data.

  L(x) = w_class CE(T(v), y)
         + w_bn sum_l a_l (|mu_l(v) - m_l| + |s2_l(v) - v_l|)
         + w_tv TV(v) + w_l2 |v| + w_c (1 - JS(T(v), S(v)))

v is the view of the pixels x, in normalized space: of reduced size, jittered
and mirrored. mu_l, s2_l are batch mean and variance at the input of BatchNorm l
and m_l, v_l its running ones; |.| is the Euclidean norm over channels, not its
square. a_l is 1 except for the first layer. The last term is competition:
images on which teacher T and the current student S disagree.

Source: that of `deep_inversion`. As released and here: one jitter offset moves
the whole batch. Ours: the Jensen-Shannon divergence clamps no probability
(`js_form="released"` does, and is degenerate with many classes); offsets and
flips can be drawn for each image (`jitter_each`, `image_flip`); a batch can go
through the networks in parts, with the same gradient (`micro_batch`), in bf16
where the released code has apex's fp16.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import Context, NonNegative, Positive
from dfkt_jax.losses import classification, image_prior, statistics
from dfkt_jax.network import Network
from dfkt_jax.network.precision import Precision, with_precision
from dfkt_jax.synthesis import micro_batches, requirements


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  cross_entropy: jax.Array
  bn_distance: jax.Array
  total_variation: jax.Array
  l2: jax.Array
  competition: jax.Array


@dataclasses.dataclass(frozen=True)
class InversionLoss:
  """Hyper-parameters of the loss; defaults are those for CIFAR-10."""

  class_weight: Annotated[float, NonNegative] = 1.0  # of the cross-entropy
  # of the BatchNorm term (paper, CIFAR; ImageNet 0.01)
  bn_weight: Annotated[float, NonNegative] = 10.0
  first_bn_weight: Annotated[float, NonNegative] = 1.0  # a_1 (10 for ImageNet)
  # of the total variation (paper)
  tv_weight: Annotated[float, NonNegative] = 2.5e-5
  # of the mean image norm (released, CIFAR)
  l2_weight: Annotated[float, NonNegative] = 0.0
  # 0: DeepInversion; adaptive above 0, often 10
  competition_weight: Annotated[float, NonNegative] = 0.0
  # of the softmax inside JS (released)
  competition_temperature: Annotated[float, Positive] = 3.0
  js_form: Literal["exact", "released"] = "exact"  # released: clamped
  # largest offset of the jitter, in pixels (released, CIFAR)
  jitter: Annotated[int, NonNegative] = 2
  jitter_each: bool = False  # draw an offset for every image
  image_flip: bool = False  # mirror each image with probability 1/2 (ImageNet)
  # images in the networks at once; 0: the whole batch
  micro_batch: Annotated[int, NonNegative] = 0
  precision: Precision = "f32"  # of the networks' activations
  remat: bool = False  # recompute activations for the gradient

  def gradient(
    self,
    key: jax.Array,
    x: jax.Array,
    labels: jax.Array,
    context: Context,
    shrink: int = 1,
  ) -> tuple[jax.Array, Info]:
    """Return the gradient at normalized images `x`, like `x`, and the terms.

    The view averages over squares of `shrink` pixels.
    """
    view, back_to_pixels = jax.vjp(lambda x: self.view(key, x, shrink), x)
    (prior, terms), prior_gradient = jax.value_and_grad(
      self._prior, has_aux=True
    )(view)
    (match, more_terms), gradient = micro_batches.value_and_grad(
      lambda averages: self._match(averages, context.teacher),
      lambda view, labels: self._averages(view, labels, context),
      view,
      labels,
      self.micro_batch,
    )
    (gradient,) = back_to_pixels(prior_gradient + gradient)
    return gradient, Info(loss=prior + match, **terms, **more_terms)

  def view(self, key: jax.Array, x: jax.Array, shrink: int) -> jax.Array:
    """Return the view of `x`; jitter shrinks with it."""
    roll_key, flip_key = jax.random.split(key)
    if shrink > 1:
      x = nn.avg_pool(x, (shrink, shrink), (shrink, shrink))
    jitter = self.jitter // shrink
    if jitter:
      roll = augment.jitter_each if self.jitter_each else augment.jitter
      x = roll(roll_key, x, jitter)
    if self.image_flip:
      x = augment.random_flip(flip_key, x)
    return x

  def networks(self, context: Context) -> list[Network]:
    """Return the teacher, and the student if there is competition.

    Both compute in `precision`.

    Raises:
      UsageError: a network's module has no field for `precision` or `remat`.
    """
    used = [context.teacher]
    if self.competition_weight:
      used.append(context.student)
    return [
      with_precision(network, self.precision, self.remat) for network in used
    ]

  def require(self, context: Context, batch_size: int) -> None:
    """Require networks and a batch that fit the settings.

    Raises:
      UsageError: the teacher has no BatchNorm but the BatchNorm term is on; the
        competition is on and there is no student; or the parts do not divide
        the batch.
    """
    name = type(self).__name__
    if self.bn_weight:
      rest = " for the class term and image prior alone"
      requirements.require_batch_norm(name, context.teacher, rest)
    if self.competition_weight:
      flag = "--competition-weight"
      purpose = f"{name} {flag} needs a student to compete with"
      requirements.require_student(purpose, context.student, flag)
    requirements.require_equal_parts(batch_size, self.micro_batch)
    self.networks(context)

  def _prior(self, view) -> tuple[jax.Array, dict[str, Any]]:
    total_variation = image_prior.total_variation_l2(view)
    l2 = image_prior.l2_norm(view).mean()
    loss = self.tv_weight * total_variation + self.l2_weight * l2
    return loss, {"total_variation": total_variation, "l2": l2}

  def _averages(self, view, labels, context) -> dict[str, Any]:
    """Return all that the loss needs of the networks, averaged over images."""
    teacher, *student = self.networks(context)
    images = teacher.spec.denormalize(view)
    logits, taps = net.statistics(teacher, images)
    averages = {
      "moments": statistics.moments(taps, teacher.batch_stats),
      "cross_entropy": classification.cross_entropy(logits, labels).mean(),
    }
    if student:
      divergence = {
        "exact": classification.jensen_shannon,
        "released": classification.jensen_shannon_released,
      }[self.js_form]
      student_logits = net.logits(student[0], images)
      averages["divergence"] = divergence(
        logits, student_logits, self.competition_temperature
      ).mean()
    return averages

  def _match(self, averages, teacher) -> tuple[jax.Array, dict[str, Any]]:
    cross_entropy = averages["cross_entropy"]
    bn_distance = competition = jnp.float32(0.0)
    if self.bn_weight:
      running = teacher.batch_stats
      bn_distance = statistics.norm_distance(
        statistics.from_moments(averages["moments"], running),
        running,
        net.batch_norm_paths(teacher)[0],
        self.first_bn_weight,
      )
    if self.competition_weight:
      competition = 1.0 - jnp.clip(averages["divergence"], 0.0, 1.0)
    loss = (
      self.class_weight * cross_entropy
      + self.bn_weight * bn_distance
      + self.competition_weight * competition
    )
    return loss, {
      "cross_entropy": cross_entropy,
      "bn_distance": bn_distance,
      "competition": competition,
    }
