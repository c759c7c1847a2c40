"""How good a network is on labelled images."""

from collections.abc import Callable
import itertools

import jax
import numpy as np

from dfkt_jax import data, parallel
from dfkt_jax import network as net
from dfkt_jax.data import Dataset
from dfkt_jax.errors import DfktError, UsageError
from dfkt_jax.network import Network

CALIBRATION_BINS = 15


def fit_to(network: Network, dataset: Dataset) -> Dataset:
  """The dataset at the size and with the channels the network takes.

  Raises:
    UsageError: its classes are not the network's.
  """
  spec = network.spec
  highest = int(dataset.labels.max(initial=-1))
  if highest >= spec.classes:
    raise UsageError(
      f"dataset {dataset.name} has label {highest} and the network tells"
      f" {spec.classes} classes apart: give a dataset of the network's classes"
    )
  names = dataset.class_names
  if names and spec.class_names and names != spec.class_names:
    raise UsageError(
      f"dataset {dataset.name} has {len(names)} classes and the network"
      f" {spec.classes}; {_first_difference(names, spec.class_names)}: give a"
      " dataset of the network's classes, in its order, or (dfkt adapt) a"
      " --class-map"
    )
  return data.fit(dataset, spec.height, spec.width, spec.channels)


def _first_difference(names, expected):
  place, there, here = next(
    (place, there, here)
    for place, (there, here) in enumerate(
      itertools.zip_longest(names, expected, fillvalue="missing")
    )
    if there != here
  )
  return f"class {place} is {there!r} there and {here!r} here"


def make_predict() -> Callable[[Network, np.ndarray], np.ndarray]:
  """predict(network, u8[n, height, width, channels]) -> f32[n, classes].

  One compilation serves all networks of one module.
  """

  @jax.jit
  def forward(network, images):
    images = parallel.split(images)
    logits = net.logits(network, images.astype("float32") / 255)
    return parallel.whole(logits)

  def predict(network, images, batch_size=512):
    labels = np.zeros(len(images), np.int32)
    # As many as the devices can share evenly.
    devices = parallel.data_devices()
    size = devices * -(-min(batch_size, len(images)) // devices)
    answers = [
      np.asarray(forward(network, batch))[mask]
      for batch, _, mask in data.padded_batches(images, labels, size)
    ]
    return np.concatenate(answers)

  return predict


def evaluate(
  network: Network,
  dataset: Dataset,
  teacher: Network | None = None,
  predict: Callable[[Network, np.ndarray], np.ndarray] | None = None,
) -> dict:
  """Accuracy and calibration; shares are in [0, 1].

  `agreement` is the share of images on which network and `teacher` decide
  alike. `calibration_error` is the expected calibration error over 15 bins of
  equal width (Guo et al., ICML 2017, equation 3).
  """
  predict = predict or make_predict()
  dataset = fit_to(network, dataset)
  if not len(dataset.labels):
    raise UsageError(f"dataset {dataset.name} is empty: give one with images")
  logits = predict(network, dataset.images)
  result = score(logits, dataset.labels, network.spec.classes)
  if teacher is not None:
    theirs = predict(teacher, fit_to(teacher, dataset).images).argmax(1)
    result["agreement"] = share(logits.argmax(1) == theirs)
  return result


def score(logits: np.ndarray, labels: np.ndarray, classes: int) -> dict:
  """`evaluate` of f32[n, classes] logits against i32[n] labels."""
  if not np.isfinite(logits).all():
    raise DfktError(
      "the network's answers are not finite numbers: it was broken in training"
      " (too high a learning rate?); train or import it again"
    )
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


def open_set_score(
  logits: np.ndarray, known: np.ndarray, labels: np.ndarray, classes: int
) -> dict:
  """Where some images are of no class the network knows.

  Args:
    known: bool[n], which images the network takes for one of its classes.
    labels: i32[n]; `classes` stands for all that it does not know.

  Returns:
    OS* ("known_accuracy", the mean over known classes), "unknown_accuracy", OS
    (the mean over both), the H-score 2 OS* UNK / (OS* + UNK), and
    "per_class_accuracy" with the unknown ones last.
  """
  decisions = np.where(known, logits.argmax(1), classes)
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


def _calibration_error(confidence, right):
  bins = np.minimum(
    (confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1
  )
  gap = right - confidence
  sums = np.bincount(bins, weights=gap, minlength=CALIBRATION_BINS)
  return round(float(np.abs(sums).sum()) / len(gap), 6)


def share(flags: np.ndarray) -> float:
  """The share that is true, in [0, 1]."""
  return round(float(np.mean(flags)), 6)
