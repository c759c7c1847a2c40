"""Decisions, agreement and scores of each task, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.errors import DfktError, UsageError
from dfkt_jax.evaluation.scores import score
from dfkt_jax.network import (
  Classification,
  InputSpec,
  Regression,
  Segmentation,
  Task,
)

RNG = np.random.default_rng(0)
TASKS = [Classification(3), Regression(3), Segmentation(3)]
SHAPES = {"classification": (5, 3), "regression": (5, 3)}


def logits_of(task, seed=0):
  shape = SHAPES.get(task.kind, (5, 4, 4, 3))
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_is_static_and_decides_alike_in_jit_and_on_the_host(task):
  assert isinstance(task, Task)
  assert hash(task) == hash(type(task)(3))
  ours, theirs = logits_of(task), logits_of(task, 1)
  decisions = jax.jit(task.decisions)(ours)
  np.testing.assert_array_equal(decisions, task.decisions(ours))
  agreement = jax.jit(task.agreement)(ours, theirs)
  assert agreement.shape == (5,)
  assert agreement.dtype == jnp.float32
  np.testing.assert_allclose(agreement, task.agreement(ours, theirs), rtol=1e-6)
  assert (np.asarray(agreement) >= 0).all()
  assert (np.asarray(agreement) < 1).any()
  np.testing.assert_array_equal(task.agreement(ours, ours), np.ones(5))
  labels = np.zeros((5, 3)) if task.kind == "regression" else decisions
  assert task.headline in task.scores(ours, np.asarray(labels))


def test_classes_are_decided_over_the_last_axis():
  task = Classification(3)
  logits = jnp.asarray(RNG.normal(size=(2, 4, 3)))
  decisions = task.decisions(logits)
  assert decisions.dtype == jnp.int32
  np.testing.assert_array_equal(decisions, logits.argmax(-1))
  logits = np.eye(3)[[0, 1, 2, 1]]
  others = np.eye(3)[[0, 2, 2, 0]]
  assert task.agreement(logits, others).tolist() == [1, 0, 1, 0]


def test_the_scores_of_a_classification_are_those_of_score():
  logits = RNG.normal(size=(40, 7)).astype(np.float32)
  labels = RNG.integers(0, 7, 40).astype(np.int32)
  assert Classification(7).scores(logits, labels) == score(logits, labels, 7)


def test_a_regression_is_scored_in_the_unit_of_its_labels():
  task = Regression(2, ("m", "kg"), mean=(10.0, 0.0), std=(2.0, 4.0))
  outputs = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0]])
  labels = np.array([[10.0, 1.0], [13.0, 0.0], [8.0, 5.0]])
  # In the unit: (10, 0), (12, 0), (8, 4). Errors: (0, 1), (1, 0), (0, 1).
  found = task.scores(outputs, labels)
  assert found["rmse"] == pytest.approx(np.sqrt(3 / 6), abs=1e-6)
  assert found["mae"] == 0.5
  spreads = ((labels - labels.mean(0)) ** 2).sum(0)
  expected = 1 - np.array([1, 2]) / spreads
  assert found["per_output_r2"] == pytest.approx(expected, abs=1e-6)
  assert found["r2"] == pytest.approx(expected.mean(), abs=1e-6)
  assert found["images"] == 3
  perfect = task.scores((labels - task.mean) / task.std, labels)
  assert (perfect["rmse"], perfect["mae"], perfect["r2"]) == (0, 0, 1)


def test_targets_that_are_all_equal_have_no_r2():
  found = Regression(2).scores(np.zeros((3, 2)), np.ones((3, 2)))
  assert found["per_output_r2"] == [None, None]
  assert found["r2"] is None
  assert found["rmse"] == 1.0


def test_regressions_agree_by_their_distance_in_standard_units():
  task = Regression(2, mean=(5.0, 5.0), std=(9.0, 9.0))
  ours = np.zeros((3, 2), np.float32)
  theirs = np.array([[0, 0], [1, 1], [2, 0]], np.float32)
  expected = np.exp([0.0, -1.0, -2.0])
  np.testing.assert_allclose(task.agreement(ours, theirs), expected, rtol=1e-6)
  assert task.decisions(theirs) is theirs


def test_a_segmentation_is_scored_pixel_by_pixel():
  decisions = np.array([[[0, 0], [1, 1]], [[0, 1], [1, 0]]])
  labels = np.array([[[0, 1], [1, 255]], [[0, 1], [0, -1]]])
  logits = np.eye(3)[decisions]
  found = Segmentation(3).scores(logits, labels)
  # Counted, as label -> decision: 0>0, 1>0, 1>1, 0>0, 1>1, 0>1.
  assert found["confusion"] == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
  assert found["pixel_accuracy"] == pytest.approx(4 / 6, abs=1e-6)
  assert found["per_class_iou"] == [0.5, 0.5, None]
  assert found["mean_iou"] == 0.5
  assert found["images"] == 2


def test_segmentations_agree_by_the_share_of_equal_pixels():
  ours = np.eye(2)[np.array([[[0, 0], [0, 0]], [[1, 1], [1, 0]]])]
  theirs = np.eye(2)[np.array([[[0, 0], [0, 1]], [[0, 0], [0, 1]]])]
  assert Segmentation(2).agreement(ours, theirs).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_outputs_that_are_not_finite_are_refused(task):
  logits = logits_of(task)
  logits.flat[4] = np.nan
  with pytest.raises(DfktError, match="not finite"):
    task.scores(logits, np.zeros(5, np.int32))


@pytest.mark.parametrize(
  ("task", "labels", "said"),
  [
    (Regression(3), np.zeros(5), r"shape \(5,\) and the predictions \(5, 3\)"),
    (Segmentation(3), np.zeros((5, 8, 8), int), r"\(5, 8, 8\)"),
    (Segmentation(3), np.full((5, 4, 4), 255), "no pixel of the 5 label maps"),
  ],
)
def test_labels_of_another_shape_are_refused(task, labels, said):
  with pytest.raises(UsageError, match=said):
    task.scores(logits_of(task), labels)


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: Classification(3, ("a", "b")), "2 names for 3 outputs"),
    (lambda: Classification(0), "has 0 outputs"),
    (lambda: Segmentation(2, ("a",)), "1 names for 2 outputs"),
    (lambda: Regression(2, ("a",)), "1 names for 2 outputs"),
    (lambda: Regression(2, mean=(0.0,)), "Regression.mean has 1 values"),
    (lambda: Regression(2, std=(1.0,) * 3), "Regression.std has 3 values"),
    (lambda: Regression(2, std=(1.0, 0.0)), "not all above 0"),
    (
      lambda: InputSpec(8, 8, 1, (0.5,), (0.5,), 10),  # type: ignore
      "InputSpec.task is 10: give a task",
    ),
    (
      lambda: InputSpec(8, 8, 1, (0.5, 0.5), (0.5,), Classification(10)),
      "InputSpec.mean has 2 values for 1 channels",
    ),
    (
      lambda: InputSpec(8, 8, 1, (0.5,), (0.5,), Classification(10), 1.5),
      r"InputSpec.crop is 1.5, not in \(0, 1\]",
    ),
  ],
)
def test_what_does_not_fit_together_is_refused(make, said):
  with pytest.raises(ValueError, match=said):
    make()


def test_a_spec_has_the_classes_and_names_of_its_task():
  spec = InputSpec(8, 8, 1, (0.5,), (0.5,), Classification(2, ("a", "b")))
  assert (spec.classes, spec.class_names) == (2, ("a", "b"))
  spec = InputSpec(8, 8, 1, (0.5,), (0.5,), Regression(3))
  assert (spec.classes, spec.class_names) == (3, ())
