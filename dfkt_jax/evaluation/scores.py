"""Scores of predictions against labels.

Those of a network's task are `spec.task.scores` (`network.task`).
"""

import numpy as np

from dfkt_jax.network import Classification
from dfkt_jax.network.scores import score, share

__all__ = ["open_set_score", "score", "share"]


def open_set_score(
  logits: np.ndarray, known: np.ndarray, labels: np.ndarray, classes: int
) -> dict:
  """Return scores where some images are of classes that the network lacks.

  Args:
    logits: f32[n, classes].
    known: bool[n], whether the network takes an image for one of its classes.
    labels: i32[n]; `classes` stands for every class that the network lacks.

  Returns:
    OS* ("known_accuracy", the mean over known classes), "unknown_accuracy", OS
    ("mean_class_accuracy", the mean over known classes and the unknown one),
    the H-score 2 OS* UNK / (OS* + UNK), and "per_class_accuracy" with the
    unknown class last.
  """
  decisions = Classification(classes).decisions(logits)
  decisions = np.where(known, decisions, classes)
  right = decisions == labels
  per_class = [
    share(right[labels == k]) if (labels == k).any() else None
    for k in range(classes + 1)
  ]
  present = [value for value in per_class[:-1] if value is not None]
  inside, outside = float(np.mean(present or [0.0])), per_class[-1] or 0.0
  both = [*present, outside]
  return {
    "accuracy": share(right),
    "mean_class_accuracy": round(float(np.mean(both)), 6),
    "known_accuracy": round(inside, 6),
    "unknown_accuracy": outside,
    "h_score": round(2 * inside * outside / max(inside + outside, 1e-12), 6),
    "per_class_accuracy": per_class,
  }
