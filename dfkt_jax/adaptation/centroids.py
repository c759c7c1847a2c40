"""Pseudo-labels from class centroids of target features, and class moments.

Rows are images of the target; `valid`, bool[rows], is False for padding.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.losses import information, reduce
from dfkt_jax.losses.relation import normalize

ROUNDS = 2


def pseudo_labels(
  features: jax.Array,
  probabilities: jax.Array,
  valid: jax.Array,
  threshold: int = 0,
) -> jax.Array:
  """Return the class with the nearest centroid by cosine, i32[rows].

    f_i = norm([features_i, 1]),   a_ik = p_ik
    twice:  c_k = sum_i a_ik f_i / sum_i a_ik
            y_i = argmin_k 1 - cos(f_i, c_k),   k with more than `threshold` y
            a_ik = [y_i = k]

  SHOT (Liang et al., ICML 2020, equations 4 to 6). Two details follow the
  released code: a constant 1 is appended to the features before they are
  normalized, and the classes above the threshold are counted again in each
  round, before the first one by the predictions.

  Args:
    features: f32[rows, width], of the bottleneck or penultimate.
    probabilities: f32[rows, classes].
  """
  ones = jnp.ones((len(features), 1))
  return cluster(
    normalize(jnp.concatenate([features, ones], 1)),
    probabilities,
    valid,
    threshold,
  ).labels


class Clusters(NamedTuple):
  """Labels of images, and the similarities that they follow from."""

  labels: jax.Array  # i32[rows]
  cosines: jax.Array  # f32[rows, classes]; -inf where a class has no centroid


def cluster(
  features: jax.Array,
  weights: jax.Array,
  valid: jax.Array,
  threshold: int = 0,
) -> Clusters:
  """Run the rounds of `pseudo_labels` on features of length 1.

  Args:
    features: f32[rows, width].
    weights: f32[rows, classes], a of the first round; any weights will do.
  """
  chex.assert_rank([features, weights], 2)
  chex.assert_equal_shape_prefix([features, weights, valid], 1)
  classes = weights.shape[1]
  labels = weights.argmax(1)
  for _ in range(ROUNDS):
    weights = jnp.where(valid[:, None], weights, 0.0)
    counts = jnp.where(valid[:, None], _one_hot(labels, classes), 0.0).sum(0)
    centroids = weights.T @ features
    similarity = features @ normalize(centroids).T
    known = counts > threshold
    known |= ~known.any()  # where none exceeds the threshold, all count
    similarity = jnp.where(known, similarity, -jnp.inf)
    labels = similarity.argmax(1)
    weights = _one_hot(labels, classes)
  return Clusters(labels.astype(jnp.int32), similarity)


def sure(logits: jax.Array, valid: jax.Array) -> jax.Array:
  """Return whether a row is in the surer one of two groups, bool[rows].

  The groups come from 2-means of the entropy, which starts from its extremes
  (SHOT's released open-set code).
  """
  entropy = information.entropy(logits)
  low = jnp.where(valid, entropy, jnp.inf).min()
  high = jnp.where(valid, entropy, -jnp.inf).max()

  def move(_, centers):
    low, high = centers
    near_low = valid & (jnp.abs(entropy - low) <= jnp.abs(entropy - high))
    return (
      reduce.mean(entropy, near_low),
      reduce.mean(entropy, valid & ~near_low),
    )

  low, high = jax.lax.fori_loop(0, 30, move, (low, high))
  return valid & (jnp.abs(entropy - low) <= jnp.abs(entropy - high))


class Moments(NamedTuple):
  """Moments of every class; 0 where a class has no weight."""

  weight: jax.Array  # f32[classes], summed
  mean: jax.Array  # f32[classes, width]
  variance: jax.Array  # f32[classes, width], biased


def class_moments(
  features: jax.Array, weights: jax.Array, valid: jax.Array
) -> Moments:
  """Return moments of f32[rows, width] weighted by f32[rows, classes]."""
  chex.assert_rank([features, weights], 2)
  chex.assert_equal_shape_prefix([features, weights, valid], 1)
  weights = jnp.where(valid[:, None], weights, 0.0)
  weight = weights.sum(0)
  scale = 1.0 / jnp.maximum(weight, 1e-8)[:, None]
  mean = scale * (weights.T @ features)
  square = scale * (weights.T @ jnp.square(features))
  return Moments(weight, mean, jnp.maximum(square - jnp.square(mean), 0.0))


def _one_hot(labels, classes):
  return jax.nn.one_hot(labels, classes)
