"""Scores of networks on labeled images, and refused datasets."""

import dataclasses

import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.data import Dataset
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation.evaluator import Evaluator, evaluate, make_predict
from dfkt_jax.evaluation.scores import open_set_score, score
from tests.networks import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 23).astype(np.int32)


def test_score_by_hand():
  p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
  result = score(np.log(p), np.array([0, 1, 1, 1]), 2)
  assert result["accuracy"] == 0.75
  assert result["per_class_accuracy"] == [1.0, pytest.approx(2 / 3, abs=1e-5)]
  assert result["mean_class_accuracy"] == pytest.approx(5 / 6, abs=1e-5)
  nll = -np.log([0.9, 0.4, 0.7, 0.8]).mean()
  assert result["negative_log_likelihood"] == pytest.approx(nll, abs=1e-5)
  # Four bins of one image each: |1-.9| + |0-.6| + |1-.7| + |1-.8|, over four.
  assert result["calibration_error"] == pytest.approx(0.3)


def test_an_absent_class_has_no_accuracy():
  result = score(np.eye(3), np.array([0, 1, 1]), 3)
  assert result["per_class_accuracy"][2] is None
  assert result["mean_class_accuracy"] == 0.75


def test_a_network_on_images_in_batches_that_do_not_divide():
  network = tiny()
  dataset = Dataset("made", IMAGES, LABELS)
  logits = np.asarray(net.logits(network, IMAGES.astype("float32") / 255))
  predict = make_predict()
  np.testing.assert_allclose(predict(network, IMAGES, 5), logits, atol=1e-4)
  result = evaluate(network, dataset, teacher=network)
  expected = (logits.argmax(1) == LABELS).mean()
  assert result["accuracy"] == pytest.approx(expected, abs=1e-5)
  assert result["agreement"] == 1.0
  assert result["images"] == 23


def test_an_evaluator_logs_the_scores_of_evaluate():
  teacher, student = tiny(), tiny(1)
  dataset = Dataset("made", IMAGES, LABELS)
  evaluator = Evaluator(teacher, dataset)
  expected = evaluate(student, dataset, teacher)
  assert evaluator(student) == {
    "eval/accuracy": expected["accuracy"],
    "eval/agreement": expected["agreement"],
  }
  assert evaluator.teacher_accuracy == evaluate(teacher, dataset)["accuracy"]


def test_a_regression_is_evaluated_by_its_own_scores():
  task = net.Regression(10, mean=(3.0,) * 10, std=(2.0,) * 10)
  network = tiny(input_spec=dataclasses.replace(tiny().spec, task=task))
  logits = np.asarray(net.logits(network, IMAGES.astype("float32") / 255))
  dataset = Dataset("made", IMAGES, 2.0 * logits + 3.0 + 0.5)
  found = evaluate(network, dataset, teacher=network)
  assert found["rmse"] == pytest.approx(0.5, abs=1e-4)
  assert found["mae"] == pytest.approx(0.5, abs=1e-4)
  assert found["agreement"] == 1.0
  assert Evaluator(network, dataset)(network) == {
    "eval/r2": found["r2"],
    "eval/agreement": 1.0,
  }


def test_labels_that_the_network_lacks_are_refused():
  dataset = Dataset("made", IMAGES, LABELS + 5)
  with pytest.raises(UsageError, match="made has label 14"):
    evaluate(tiny(), dataset)


def test_other_class_names_are_refused():
  network = tiny()
  names = tuple("abcdefghij")
  task = net.Classification(10, names)
  spec = net.InputSpec(8, 8, 1, (0.4,), (0.3,), task)
  dataset = Dataset("made", IMAGES, LABELS, tuple("abcdefghji"))
  with pytest.raises(UsageError, match="class 8 is 'j' in the dataset and 'i'"):
    evaluate(network.replace(spec=spec), dataset)


def test_an_open_set_by_hand():
  logits = 5.0 * np.eye(3)[[0, 1, 1, 2, 0, 2]]
  known = np.array([True, True, True, False, False, True])
  labels = np.array([0, 1, 0, 2, 3, 3])  # 3: every class the network lacks
  found = open_set_score(logits, known, labels, 3)
  assert found["per_class_accuracy"] == [0.5, 1.0, 0.0, 0.5]
  assert found["known_accuracy"] == 0.5
  assert found["unknown_accuracy"] == 0.5
  assert found["h_score"] == 0.5
  assert found["mean_class_accuracy"] == 0.5
  nothing = open_set_score(logits, ~known & False, labels, 3)
  assert nothing["h_score"] == 0.0
