"""MixMatch on a target: the labels of sure images teach the unsure ones.

  L = CE(x', y') on sure images + weight mean (p(x') - y')^2 on unsure ones

Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning",
NeurIPS 2019, with the split of SHOT++ (Liang et al., TPAMI 2021): the sure
images are those of lowest entropy in every predicted class; their share of a
class is the share of all images with less than the mean entropy. Their y is the
network's own decision. y of the other images is the mean prediction of their
views, raised to 1 / temperature. Images and y are mixed by `augment.mixup`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Predictions
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import information, reduce
from dfkt_jax.losses.classification import soft_cross_entropy
from dfkt_jax.network import Task


class Split(NamedTuple):
  """The sure images of a target."""

  sure: jax.Array  # bool[rows]
  labels: jax.Array  # i32[rows], the network's own decisions


class Loss(NamedTuple):
  """The loss, and its terms before weighting."""

  loss: jax.Array
  labeled: jax.Array
  unlabeled: jax.Array


def split(predictions: Predictions, task: Task) -> Split:
  """Return the sure images of every predicted class, and all decisions."""
  valid, logits = predictions.valid, predictions.logits
  count, classes = logits.shape
  entropy = information.entropy(logits)
  low = entropy < reduce.mean(entropy, valid)
  share = reduce.mean(low.astype(jnp.float32), valid)
  labels = jnp.where(valid, task.decisions(logits), classes)
  # Sort by class, then by entropy; padding is a class of its own, the last.
  order = jnp.lexsort((entropy, labels))
  sizes = jnp.zeros(classes + 1, jnp.int32).at[labels].add(1)
  starts = jnp.cumsum(sizes) - sizes
  place = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count))
  rank = place - starts[labels]
  sure = valid & (rank < share * sizes[labels])
  return shard(Split(sure, jnp.where(valid, labels, 0)))


def targets(
  split: Split, guesses: list[jax.Array], temperature: float
) -> jax.Array:
  """Return y: labels of sure images and sharpened guesses for the others.

  Args:
    split: of the batch.
    guesses: f32[batch, classes] logits of each view.

  Returns:
    f32[batch, classes] probabilities.
  """
  p = jax.nn.softmax(jnp.stack(guesses)).mean(0)
  sharp = jnp.power(p, 1.0 / temperature)
  sharp /= sharp.sum(1, keepdims=True)
  hard = jax.nn.one_hot(split.labels, p.shape[1])
  return jnp.where(split.sure[:, None], hard, sharp)


def loss(
  logits: jax.Array, targets: jax.Array, sure: jax.Array, weight: jax.Array
) -> Loss:
  """Return the loss of a mixed batch.

  Args:
    logits: f32[batch, classes].
    targets: f32[batch, classes], mixed y.
    sure: bool[batch].
    weight: f32[], of the unsure images.
  """
  chex.assert_equal_shape([logits, targets])
  labeled = reduce.mean(soft_cross_entropy(logits, targets), sure)
  squared = jnp.square(jax.nn.softmax(logits) - targets).mean(1)
  unlabeled = reduce.mean(squared, ~sure)
  return Loss(labeled + weight * unlabeled, labeled, unlabeled)
