"""Prototypes of a teacher's features, and the assignment of images to them.

Features are compared by direction: u = f / |f|, and the distance between two
directions is 1 - cos.
"""

from typing import NamedTuple

import chex
import numpy as np

from dfkt_jax.contracts import Scores

# The largest number of images of a class that its prototypes are found from.
SAMPLE = 4096
_CHUNK = 65_536


class Prototypes(NamedTuple):
  directions: np.ndarray  # f32[prototypes, width], of length 1
  classes: np.ndarray  # i32[prototypes]


class Assignment(NamedTuple):
  """The nearest prototype of each of n images."""

  nearest: np.ndarray  # i32[n], a prototype of the image's predicted class
  distance: np.ndarray  # f32[n], to it


def find(
  rng: np.random.Generator,
  scores: Scores,
  per_class: int,
  among: np.ndarray | None = None,
) -> Prototypes:
  """Find prototypes of every predicted class, more for a wider class.

  They are the weighted k-means of the images' directions, with the squared
  confidence as weight: images that the teacher is sure of are closest to its
  training data. A class gets `per_class` prototypes times its mean distance
  from its own mean direction over that of all classes, at least 1 and at most
  twice `per_class`.

  Args:
    among: i64[n], the images to use (default: all).
  """
  # Its import is slow, and only clustering needs it.
  from sklearn.cluster import KMeans

  among = np.arange(len(scores)) if among is None else among
  samples, spreads = {}, {}
  # Features of one class at a time are in memory.
  for label in np.unique(scores.decision[among]):
    members = among[scores.decision[among] == label]
    if len(members) > SAMPLE:
      members = rng.choice(members, SAMPLE, replace=False)
    samples[label] = np.sort(members)
    u, weights = _weighted(scores, samples[label])
    center = _normalize(weights @ u)
    spreads[label] = float((1.0 - u @ center).mean())
  mean_spread = max(float(np.mean(list(spreads.values()))), 1e-12)
  directions, classes = [], []
  for label, members in samples.items():
    u, weights = _weighted(scores, members)
    wanted = round(per_class * spreads[label] / mean_spread)
    count = min(max(wanted, 1), 2 * per_class, len(np.unique(u, axis=0)))
    means = KMeans(
      count,
      n_init=2,  # type: ignore (sklearn's annotation is of its default)
      random_state=int(rng.integers(2**31)),
    )
    means.fit(u, sample_weight=weights)
    directions.append(_normalize(means.cluster_centers_))
    classes += [label] * count
  return Prototypes(
    np.concatenate(directions).astype(np.float32),
    np.array(classes, np.int32),
  )


def assign(scores: Scores, prototypes: Prototypes) -> Assignment:
  """Assign every image of the pool, one chunk in memory at a time."""
  chex.assert_equal_shape_prefix(list(prototypes), 1)
  nearest = np.empty(len(scores), np.int32)
  distance = np.empty(len(scores), np.float32)
  for start in range(0, len(scores), _CHUNK):
    chunk = slice(start, start + _CHUNK)
    u = _directions(scores.features[chunk])
    decision = scores.decision[chunk]
    for label in np.unique(decision):
      rows = np.flatnonzero(decision == label)
      own = np.flatnonzero(prototypes.classes == label)
      cosine = u[rows] @ prototypes.directions[own].T
      nearest[start + rows] = own[cosine.argmax(1)]
      distance[start + rows] = 1.0 - cosine.max(1)
  return Assignment(nearest, distance)


def _weighted(scores, members):
  weights = np.square(scores.confidence[members])
  return _directions(scores.features[members]), weights


def _directions(features):
  return _normalize(np.asarray(features, np.float32))


def _normalize(x):
  norms = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.maximum(norms, 1e-12)
