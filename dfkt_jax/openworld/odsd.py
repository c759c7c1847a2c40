"""ODSD: images of a pool near the teacher's data, by prototypes.

Adaptive prototype sampling (Wang et al., "Sampling to Distill: Knowledge
Transfer from Open-World Data", ECCV 2024). Only names and abstract could be
read, so all formulas are ours. u = f / |f| is the direction of the teacher's
penultimate features of an image, p its top probability, c the predicted class.
Prototypes m_q of every class are found first (`prototypes`); q is the image's
nearest one of class c, and

  confidence  p
  closeness   u . m_q
  density     1 - (1 - u . m_q) / (mean of 1 - u . m_q over the images of q)

are each scaled to [0, 1] between their 1st and 99th percentile. The score is
their mean weighted by their standard deviations over the pool, so that a
quantity counts more the more it varies. The same number of images is drawn from
every class, and within it from every prototype, without replacement and with
probabilities proportional to the score. (The best images of each prototype are
too much alike.)

Its learner distills the relations between images and uses the prototypes of the
selected images: `distillation.relations`.
"""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from dfkt_jax.contracts import Positive, Scores, Selection
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import PROTOTYPES, ContrastiveRelations
from dfkt_jax.openworld import prototypes


@dataclasses.dataclass(frozen=True)
class ODSD:
  """Hyper-parameters of the sampling, all ours."""

  prototype_sampling: bool = True  # False: the highest confidences, as DFND
  # on average over classes
  prototypes_per_class: Annotated[int, Positive] = 5

  learner: ClassVar = ContrastiveRelations()
  recipe: ClassVar[Recipe] = Recipe(
    steps=80_000, batch_size=128, student_steps=5
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """Select by adaptive prototype sampling."""
    if not self.prototype_sampling:
      index = np.argsort(-scores.confidence, kind="stable")[:count]
      return Selection(index, scores.confidence[index])
    found = prototypes.find(rng, scores, self.prototypes_per_class)
    assignment = prototypes.assign(scores, found)
    score = adaptive_score(scores.confidence, assignment)
    sizes = np.bincount(scores.decision, minlength=scores.classes)
    chosen = []
    for label, count_of_class in enumerate(_distribute(sizes, count)):
      own = np.flatnonzero(found.classes == label)
      members = [np.flatnonzero(assignment.nearest == q) for q in own]
      sizes_of_own = np.array([len(m) for m in members], int)
      counts = _distribute(sizes_of_own, count_of_class)
      for images, taken in zip(members, counts):
        # The Gumbel-max trick: probabilities proportional to the score.
        noise = rng.gumbel(size=len(images))
        order = np.argsort(-np.log(score[images] + 1e-6) - noise)
        chosen.append(images[order[:taken]])
    index = np.concatenate(chosen)
    index = index[np.argsort(-score[index], kind="stable")]
    return Selection(index, score[index])

  def summarize(
    self, rng: np.random.Generator, scores: Scores, selection: Selection
  ) -> dict[str, np.ndarray]:
    """Return {"prototypes": f32[prototypes, width]} of the selected images."""
    among = np.sort(selection.index)
    found = prototypes.find(rng, scores, self.prototypes_per_class, among)
    return {PROTOTYPES: found.directions}


def adaptive_score(
  confidence: np.ndarray, assignment: prototypes.Assignment
) -> np.ndarray:
  """Return the weighted mean of confidence, closeness and density, f32[n]."""
  nearest, distance = assignment
  sizes = np.maximum(np.bincount(nearest), 1)
  radius = np.bincount(nearest, weights=distance) / sizes
  density = 1.0 - distance / np.maximum(radius[nearest], 1e-12)
  parts = np.stack([_to_unit(x) for x in (confidence, 1.0 - distance, density)])
  weights = parts.std(1)
  if not weights.any():
    weights = np.ones(len(weights))
  return (weights @ parts / weights.sum()).astype(np.float32)


def _to_unit(x):
  low, high = np.percentile(x, [1, 99])
  return np.clip((x - low) / max(high - low, 1e-12), 0.0, 1.0)


def _distribute(available: np.ndarray, count: int) -> np.ndarray:
  """Distribute `count` as evenly as `available` allows, i64 like it."""
  shares = np.zeros_like(available)
  missing = min(count, int(available.sum()))
  while missing:
    open_ = np.flatnonzero(shares < available)
    each = max(missing // len(open_), 1)
    for place in open_[:missing]:
      more = min(each, available[place] - shares[place])
      shares[place] += more
      missing -= more
  return shares
