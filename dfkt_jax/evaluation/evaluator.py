"""Scores of a network on labeled images."""

from collections.abc import Callable, Mapping
import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np

from dfkt_jax import data, files
from dfkt_jax import network as net
from dfkt_jax.data import Dataset
from dfkt_jax.devices.sharding import data_devices, replicate, shard
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation.scores import share
from dfkt_jax.network import InputSpec, Network, Regression


def fit_to(network: Network, dataset: Dataset) -> Dataset:
  """Return the dataset at the size and with the channels of the network.

  Raises:
    UsageError: its classes are not the network's.
  """
  spec = network.spec
  if not isinstance(spec.task, Regression):
    _check_classes(dataset, spec)
  return data.resize(dataset, spec.height, spec.width, spec.channels)


def _check_classes(dataset, spec):
  highest = int(dataset.labels.max(initial=-1))
  if highest >= spec.classes:
    raise UsageError(
      f"dataset {dataset.name} has label {highest} and the network has"
      f" {spec.classes} classes: give a dataset of the network's classes"
    )
  names = dataset.class_names
  if names and spec.class_names and names != spec.class_names:
    raise UsageError(
      f"dataset {dataset.name} has {len(names)} classes and the network"
      f" {spec.classes}; {_first_difference(names, spec.class_names)}: give a"
      " dataset of the network's classes, in its order, or (dfkt adapt) a"
      " --class-map"
    )


def _first_difference(names, expected):
  place, there, here = next(
    (place, there, here)
    for place, (there, here) in enumerate(
      itertools.zip_longest(names, expected, fillvalue="missing")
    )
    if there != here
  )
  return (
    f"class {place} is {there!r} in the dataset and {here!r} in the network"
  )


def make_predict() -> Callable[[Network, np.ndarray], np.ndarray]:
  """Return predict(network, u8[n, height, width, channels]) -> f32[n, ...].

  It returns the logits. One compilation serves all networks of one module.
  """

  @jax.jit
  def forward(network, images):
    images = shard(images)
    logits = net.logits(network, images.astype("float32") / 255)
    return replicate(logits)

  def predict(network, images, batch_size=512):
    labels = np.zeros(len(images), np.int32)
    # A multiple of the number of devices.
    devices = data_devices()
    size = devices * -(-min(batch_size, len(images)) // devices)
    logits = [
      np.asarray(forward(network, batch))[mask]
      for batch, _, mask in data.padded_batches(images, labels, size)
    ]
    return np.concatenate(logits)

  return predict


def evaluate(
  network: Network,
  dataset: Dataset,
  teacher: Network | None = None,
  predict: Callable[[Network, np.ndarray], np.ndarray] | None = None,
) -> dict:
  """Return the scores of the network's task; shares are in [0, 1].

  For a classifier they are accuracy and calibration (`network.scores.score`).
  "agreement" is the mean of the task's agreement with `teacher`: the share of
  images that a classifier and its teacher put into the same class.

  Raises:
    UsageError: the dataset is empty, or its classes are not the network's.
    DfktError: the network's outputs are not all finite.
  """
  predict = predict or make_predict()
  dataset = fit_to(network, dataset)
  if not len(dataset.labels):
    raise UsageError(f"dataset {dataset.name} is empty: give one with images")
  logits = predict(network, dataset.images)
  task = network.spec.task
  result = task.scores(logits, dataset.labels)
  if teacher is not None:
    others = predict(teacher, fit_to(teacher, dataset).images)
    result["agreement"] = share(task.agreement(logits, others))
  return result


class Evaluator:
  """Scores students on real images of the task, which nothing else reads.

  Attributes:
    teacher_accuracy: the teacher's accuracy, or what its task has for it.
  """

  def __init__(self, teacher: Network, dataset: data.Dataset):
    self._dataset = dataset
    self._predict = make_predict()
    self._teacher_logits = self._predict(teacher, dataset.images)
    task = teacher.spec.task
    scores = task.scores(self._teacher_logits, dataset.labels)
    self.teacher_accuracy: float = scores[task.headline]

  def __call__(self, student: Network) -> dict[str, float]:
    """Return metrics for the log: "eval/accuracy" and "eval/agreement".

    The name of the first is that of the task's headline.
    """
    task = student.spec.task
    logits = self._predict(student, self._dataset.images)
    scores = task.scores(logits, self._dataset.labels)
    return {
      f"eval/{task.headline}": scores[task.headline],
      "eval/agreement": share(task.agreement(logits, self._teacher_logits)),
    }


def load_evaluation_set(
  text: str | None, teacher: Network, class_map: Path | None = None
) -> data.Dataset | None:
  """Return the evaluation set in the size of the teacher's input.

  Args:
    text: the dataset's name; None for none.
    class_map: a JSON object from the set's class names to the teacher's, or to
      null for classes that the teacher lacks; their label becomes the number of
      the teacher's classes.

  Raises:
    UsageError: the set cannot be read, its classes are not the teacher's, or
      `class_map` does not map them.
  """
  if text is None:
    return None
  spec: InputSpec = teacher.spec
  dataset = data.load(text, (spec.height, spec.width), spec.crop)
  if class_map is None:
    return fit_to(teacher, dataset)
  mapped = _rename(dataset, spec, class_map)
  known = np.where(mapped.labels < spec.classes, mapped.labels, 0)
  fitted = fit_to(teacher, dataclasses.replace(mapped, labels=known))
  return dataclasses.replace(fitted, labels=mapped.labels)


def _rename(dataset, spec, path) -> data.Dataset:
  mapping = files.read_json(path)
  if not dataset.class_names or not spec.class_names:
    which = "--eval-dataset" if spec.class_names else "the network"
    raise UsageError(
      f"--class-map {path} maps names and {which} has no class names: leave the"
      " flag out"
    )
  expected = (
    f"expected a JSON object from class names of {dataset.name} to null or one"
    f" of {', '.join(spec.class_names)}"
  )
  if not isinstance(mapping, Mapping):
    raise UsageError(
      f"--class-map {path} holds a {type(mapping).__name__}: {expected}"
    )
  for name, value in mapping.items():
    if value is not None and value not in spec.class_names:
      raise UsageError(
        f"--class-map {path} maps {name!r} to {value!r}: {expected}"
      )
  missing = [name for name in dataset.class_names if name not in mapping]
  if missing:
    raise UsageError(
      f"--class-map {path} lacks the class {missing[0]!r} of {dataset.name}:"
      " add it, with null if the network lacks it"
    )
  to = {None: spec.classes}
  to |= {name: index for index, name in enumerate(spec.class_names)}
  table = [to[mapping[name]] for name in dataset.class_names]
  labels = np.asarray(table, np.int32)[dataset.labels]
  return dataclasses.replace(
    dataset, labels=labels, class_names=spec.class_names
  )
