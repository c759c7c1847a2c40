"""Scores of a network's outputs against labels, in numpy on the host."""

import numpy as np

from dfkt_jax.errors import DfktError, UsageError

CALIBRATION_BINS = 15


def score(logits: np.ndarray, labels: np.ndarray, classes: int) -> dict:
  """Accuracy and calibration of f32[n, classes] logits; labels are i32[n].

  "calibration_error" is the expected calibration error over 15 bins of equal
  width (Guo et al., ICML 2017, equation 3). A class without images has no
  accuracy: None.

  Raises:
    DfktError: the logits are not all finite.
  """
  _check_finite(logits)
  right = logits.argmax(1) == labels
  log_p = logits - logits.max(1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
  per_class = [
    share(right[labels == k]) if (labels == k).any() else None
    for k in range(classes)
  ]
  present = [value for value in per_class if value is not None]
  nll = -log_p[np.arange(len(labels)), labels].mean()
  return {
    "images": len(labels),
    "accuracy": share(right),
    "mean_class_accuracy": round(float(np.mean(present)), 6),
    "per_class_accuracy": per_class,
    "negative_log_likelihood": round(float(nll), 6),
    "calibration_error": _calibration_error(np.exp(log_p.max(1)), right),
  }


def _calibration_error(confidence, right):
  bins = np.minimum(
    (confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1
  )
  gap = right - confidence
  sums = np.bincount(bins, weights=gap, minlength=CALIBRATION_BINS)
  return round(float(np.abs(sums).sum()) / len(gap), 6)


def regression_scores(predicted: np.ndarray, targets: np.ndarray) -> dict:
  """Errors of f32[n, outputs] predictions in the unit of f32[n, outputs].

  "rmse" and "mae" are over all outputs. "r2" is the mean over outputs of
  1 - sum (y - t)^2 / sum (t - mean t)^2; an output whose targets are all equal
  has none, and "per_output_r2" holds None for it.

  Raises:
    DfktError: the predictions are not all finite.
    UsageError: the shapes differ.
  """
  _check_finite(predicted)
  _check_shapes(predicted.shape, targets.shape, "regression")
  error = np.asarray(predicted, np.float64) - targets
  squares = (error**2).sum(0)
  spread = ((targets - targets.mean(0, dtype=np.float64)) ** 2).sum(0)
  per_output = [
    round(1.0 - float(square / total), 6) if total > 0 else None
    for square, total in zip(squares, spread)
  ]
  present = [value for value in per_output if value is not None]
  return {
    "images": len(targets),
    "rmse": round(float(np.sqrt((error**2).mean())), 6),
    "mae": round(float(np.abs(error).mean()), 6),
    "r2": round(float(np.mean(present)), 6) if present else None,
    "per_output_r2": per_output,
  }


def segmentation_scores(
  logits: np.ndarray, labels: np.ndarray, classes: int
) -> dict:
  """Scores of f32[n, height, width, classes] against i32[n, height, width].

  A label outside 0 .. classes - 1 (255, or -1) is of a pixel that does not
  count. "confusion" counts pixels as [label][decision]. The intersection over
  union of a class is its diagonal entry over its row plus its column less that
  entry; a class in neither has none (None), and "mean_iou" is over the others.

  Raises:
    DfktError: the logits are not all finite.
    UsageError: the shapes differ, or no pixel counts.
  """
  _check_finite(logits)
  _check_shapes(logits.shape[:-1], labels.shape, "segmentation")
  counts = (labels >= 0) & (labels < classes)
  if not counts.any():
    raise UsageError(
      f"no pixel of the {len(labels)} label maps has a class from 0 to"
      f" {classes - 1}: give labels of the network's classes"
    )
  pairs = classes * labels[counts].astype(np.int64) + logits.argmax(-1)[counts]
  confusion = np.bincount(pairs, minlength=classes**2)
  confusion = confusion.reshape(classes, classes)
  both = np.diag(confusion)
  either = confusion.sum(0) + confusion.sum(1) - both
  per_class = [
    round(float(i / u), 6) if u else None for i, u in zip(both, either)
  ]
  present = [value for value in per_class if value is not None]
  return {
    "images": len(labels),
    "pixel_accuracy": round(float(both.sum() / confusion.sum()), 6),
    "mean_iou": round(float(np.mean(present)), 6),
    "per_class_iou": per_class,
    "confusion": confusion.tolist(),
  }


def share(flags: np.ndarray) -> float:
  """The mean of flags, or of numbers in [0, 1], rounded to six digits."""
  return round(float(np.asarray(flags, np.float64).mean()), 6)


def _check_finite(outputs):
  if not np.isfinite(outputs).all():
    raise DfktError(
      "the network's outputs are not finite numbers: it was broken in training"
      " (too high a learning rate?); train or import it again"
    )


def _check_shapes(predicted, labels, task):
  if predicted != labels:
    raise UsageError(
      f"the labels of this {task} have the shape {labels} and the predictions"
      f" {predicted}: give labels of the network's shape"
    )
