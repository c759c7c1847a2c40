"""Tasks: the meaning of a network's outputs, its decisions and its scores.

A task is part of the `InputSpec`, so that no method and no command decides by
itself what a network decides.
"""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import chex
import jax.numpy as jnp
import numpy as np

from dfkt_jax.network import scores

Array = Any  # of JAX in jit, of numpy on the host: what came in


@runtime_checkable
class Task(Protocol):
  """Decisions, agreement and scores of a kind of network; hashable."""

  kind: ClassVar[str]  # its name in a network's card
  headline: ClassVar[str]  # the entry of `scores` for the log; more is better

  @property
  def outputs(self) -> int:
    """Return the width of the last axis of the logits."""
    ...

  @property
  def names(self) -> tuple[str, ...]:
    """Return the names of the outputs in their order, or ()."""
    ...

  def decisions(self, logits: Array) -> Array:
    """Return what the network decides, for logits of any leading axes."""
    ...

  def agreement(self, logits: Array, others: Array) -> Array:
    """Return f32[batch] in [0, 1], 1 where two networks decide alike."""
    ...

  def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the scores of outputs against labels, on the host."""
    ...


@dataclasses.dataclass(frozen=True)
class _TopClass:
  """Decisions of logits with one entry a class."""

  classes: int
  names: tuple[str, ...] = ()

  def __post_init__(self):
    _check(self, self.classes)

  @property
  def outputs(self) -> int:
    """Return the number of classes."""
    return self.classes

  def decisions(self, logits: Array) -> Array:
    """Return the top class, i32[...], of f32[..., classes]."""
    return logits.argmax(-1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Classification(_TopClass):
  """One of several classes for every image.

  Logits are f32[batch, classes] and labels i32[batch].
  """

  kind: ClassVar[str] = "classification"
  headline: ClassVar[str] = "accuracy"

  def agreement(self, logits: Array, others: Array) -> Array:
    """Return f32[...], 1 where the top classes of f32[..., classes] match."""
    ours, theirs = self.decisions(logits), self.decisions(others)
    chex.assert_equal_shape((ours, theirs))
    return (ours == theirs).astype(np.float32)

  def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy and calibration, as `network.scores.score` does."""
    return scores.score(outputs, labels, self.classes)


@dataclasses.dataclass(frozen=True)
class Regression:
  """Numbers for every image.

  The network's outputs, f32[batch, outputs], are in standard units: an output
  times `std` plus `mean` is in the user's unit, that of the labels, f32[batch,
  outputs]. Empty moments stand for 0 and 1.
  """

  kind: ClassVar[str] = "regression"
  headline: ClassVar[str] = "r2"
  outputs: int
  names: tuple[str, ...] = ()
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __post_init__(self):
    _check(self, self.outputs)
    for name in ("mean", "std"):
      values = getattr(self, name)
      if values and len(values) != self.outputs:
        raise ValueError(
          f"Regression.{name} has {len(values)} values for {self.outputs}"
          " outputs"
        )
    if not all(value > 0 for value in self.std):
      raise ValueError(f"Regression.std is {self.std}, not all above 0")

  def decisions(self, logits: Array) -> Array:
    """Return the outputs themselves."""
    return logits

  def agreement(self, logits: Array, others: Array) -> Array:
    """Return f32[...], exp(-d) with d the mean squared difference.

    The outputs are in standard units, so that it is 1 where they are equal and
    1 / e where they lie one standard deviation of the target apart.
    """
    chex.assert_equal_shape((logits, others))
    return jnp.exp(-((logits - others) ** 2).mean(-1))

  def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return "rmse", "mae" and "r2" in the user's unit."""
    return scores.regression_scores(self.in_unit(outputs), labels)

  def in_unit(self, outputs: np.ndarray) -> np.ndarray:
    """Return f32[..., outputs] in the user's unit."""
    std = np.asarray(self.std or (1.0,) * self.outputs, np.float32)
    mean = np.asarray(self.mean or (0.0,) * self.outputs, np.float32)
    return np.asarray(outputs) * std + mean


@dataclasses.dataclass(frozen=True)
class Segmentation(_TopClass):
  """One of several classes for every pixel.

  Logits are f32[batch, height, width, classes] and labels i32[batch, height,
  width]; a label outside the classes is of a pixel that does not count.
  """

  kind: ClassVar[str] = "segmentation"
  headline: ClassVar[str] = "mean_iou"

  def agreement(self, logits: Array, others: Array) -> Array:
    """Return f32[...], the share of pixels with the same top class.

    Logits are f32[..., height, width, classes].
    """
    ours, theirs = self.decisions(logits), self.decisions(others)
    chex.assert_equal_shape((ours, theirs))
    return (ours == theirs).astype(np.float32).mean((-2, -1))

  def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return "pixel_accuracy", "mean_iou", "per_class_iou", "confusion"."""
    return scores.segmentation_scores(outputs, labels, self.classes)


TASKS = {task.kind: task for task in (Classification, Regression, Segmentation)}


def _check(task, outputs):
  """Refuse a task without outputs, or with names for others."""
  name = type(task).__name__
  if outputs < 1:
    raise ValueError(f"{name} has {outputs} outputs, expected 1 or more")
  if task.names and len(task.names) != outputs:
    raise ValueError(
      f"{name} has {len(task.names)} names for {outputs} outputs"
    )
