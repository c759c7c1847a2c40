"""Pseudo-labels from class centroids of target features, and class moments.

Rows are target images; `valid`, bool[rows], says which are none of padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.losses import information
from dfkt_jax.losses.relation import normalise

ROUNDS = 2


def pseudo_labels(
  features: jax.Array,
  probabilities: jax.Array,
  valid: jax.Array,
  threshold: int = 0,
) -> jax.Array:
  """The class whose centroid is nearest by cosine, i32[rows].

    f_i = norm([features_i, 1]),   a_ik = p_ik
    twice:  c_k = sum_i a_ik f_i / sum_i a_ik
            y_i = argmin_k 1 - cos(f_i, c_k),   k with more than `threshold` y
            a_ik = [y_i = k]

  SHOT (Liang et al., ICML 2020, equations 4 to 6). Features get a constant 1
  before they are normalised, and the classes in question are counted anew in
  either round, by the predictions before the first: both as in released code.

  Args:
    features: f32[rows, width], of the bottleneck or penultimate.
    probabilities: f32[rows, classes].
  """
  ones = jnp.ones((len(features), 1))
  return cluster(
    normalise(jnp.concatenate([features, ones], 1)),
    probabilities,
    valid,
    threshold,
  ).labels


class Clusters(NamedTuple):
  labels: jax.Array  # i32[rows]
  cosines: jax.Array  # f32[rows, classes]; -inf where a class has no centroid


def cluster(
  features: jax.Array,
  weights: jax.Array,
  valid: jax.Array,
  threshold: int = 0,
) -> Clusters:
  """The rounds of `pseudo_labels`, of f32[rows, width] of length 1.

  The first centroids are of f32[rows, classes] weights, whatever they are.
  """
  classes = weights.shape[1]
  labels = weights.argmax(1)
  for _ in range(ROUNDS):
    weights = jnp.where(valid[:, None], weights, 0.0)
    counts = jnp.where(valid[:, None], _one_hot(labels, classes), 0.0).sum(0)
    centroids = weights.T @ features
    similarity = features @ normalise(centroids).T
    known = counts > threshold
    known |= ~known.any()  # too high a threshold: all of them, not the first
    similarity = jnp.where(known, similarity, -jnp.inf)
    labels = similarity.argmax(1)
    weights = _one_hot(labels, classes)
  return Clusters(labels.astype(jnp.int32), similarity)


def sure(logits: jax.Array, valid: jax.Array) -> jax.Array:
  """Which rows are the surer of two groups, bool[rows].

  2-means of the entropy, from its extremes (SHOT's released open-set code).
  """
  entropy = information.entropies(logits)
  low = jnp.where(valid, entropy, jnp.inf).min()
  high = jnp.where(valid, entropy, -jnp.inf).max()

  def move(_, centres):
    low, high = centres
    near_low = valid & (jnp.abs(entropy - low) <= jnp.abs(entropy - high))
    return (
      information.mean(entropy, near_low),
      information.mean(entropy, valid & ~near_low),
    )

  low, high = jax.lax.fori_loop(0, 30, move, (low, high))
  return valid & (jnp.abs(entropy - low) <= jnp.abs(entropy - high))


class Moments(NamedTuple):
  """Of every class; 0 where a class has no weight."""

  weight: jax.Array  # f32[classes], summed
  mean: jax.Array  # f32[classes, width]
  variance: jax.Array  # f32[classes, width], biased


def class_moments(
  features: jax.Array, weights: jax.Array, valid: jax.Array
) -> Moments:
  """Weighted moments of f32[rows, width] by f32[rows, classes] weights."""
  weights = jnp.where(valid[:, None], weights, 0.0)
  weight = weights.sum(0)
  scale = 1.0 / jnp.maximum(weight, 1e-8)[:, None]
  mean = scale * (weights.T @ features)
  square = scale * (weights.T @ jnp.square(features))
  return Moments(weight, mean, jnp.maximum(square - jnp.square(mean), 0.0))


def _one_hot(labels, classes):
  return jax.nn.one_hot(labels, classes)
