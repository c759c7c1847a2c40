"""Student and teacher on the evaluation set."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path

import numpy as np

from dfkt_jax import data, evaluate, files
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec, Network


class Evaluation:
  """The only reader of real images of the task."""

  def __init__(self, teacher: Network, dataset: data.Dataset):
    self._dataset = dataset
    self._predict = evaluate.make_predict()
    self._decisions = self._predict(teacher, dataset.images).argmax(1)
    self.teacher_accuracy = evaluate.share(self._decisions == dataset.labels)

  def __call__(self, student: Network) -> dict[str, float]:
    """Metrics of the log: "eval/accuracy" and "eval/agreement"."""
    logits = self._predict(student, self._dataset.images)
    result = evaluate.score(logits, self._dataset.labels, student.spec.classes)
    agreement = evaluate.share(logits.argmax(1) == self._decisions)
    return {"eval/accuracy": result["accuracy"], "eval/agreement": agreement}


def load(
  text: str | None, teacher: Network, class_map: Path | None = None
) -> data.Dataset | None:
  """The evaluation set at the teacher's input, if there is one.

  Args:
    class_map: a JSON object from the set's class names to the teacher's, or to
      null for classes that the teacher does not know; their label becomes the
      number of its classes.
  """
  if text is None:
    return None
  spec: InputSpec = teacher.spec
  dataset = data.load(text, (spec.height, spec.width), spec.crop)
  if class_map is None:
    return evaluate.fit_to(teacher, dataset)
  mapped = _rename(dataset, spec, class_map)
  known = np.where(mapped.labels < spec.classes, mapped.labels, 0)
  fitted = evaluate.fit_to(teacher, dataclasses.replace(mapped, labels=known))
  return dataclasses.replace(fitted, labels=mapped.labels)


def _rename(dataset, spec, path) -> data.Dataset:
  mapping = files.read_json(path)
  if not dataset.class_names or not spec.class_names:
    which = "--eval-dataset" if spec.class_names else "the network"
    raise UsageError(
      f"--class-map {path} maps names and {which} has no class names: leave it"
      " out"
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
      f"--class-map {path} says nothing of the class {missing[0]!r} of"
      f" {dataset.name}: add it, with null if the network does not know it"
    )
  to = {None: spec.classes}
  to |= {name: index for index, name in enumerate(spec.class_names)}
  table = [to[mapping[name]] for name in dataset.class_names]
  labels = np.asarray(table, np.int32)[dataset.labels]
  return dataclasses.replace(
    dataset, labels=labels, class_names=spec.class_names
  )
