import numpy as np
import pytest

from dfkt_jax import evaluate
from dfkt_jax import network as net
from dfkt_jax.data import Dataset
from dfkt_jax.errors import UsageError
from tests.networks import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 23).astype(np.int32)


def test_score_by_hand():
  p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
  result = evaluate.score(np.log(p), np.array([0, 1, 1, 1]), 2)
  assert result["accuracy"] == 0.75
  assert result["per_class_accuracy"] == [1.0, pytest.approx(2 / 3, abs=1e-5)]
  assert result["mean_class_accuracy"] == pytest.approx(5 / 6, abs=1e-5)
  nll = -np.log([0.9, 0.4, 0.7, 0.8]).mean()
  assert result["negative_log_likelihood"] == pytest.approx(nll, abs=1e-5)
  # Four bins of one image each: |1-.9| + |0-.6| + |1-.7| + |1-.8|, over four.
  assert result["calibration_error"] == pytest.approx(0.3)


def test_an_absent_class_has_no_accuracy():
  result = evaluate.score(np.eye(3), np.array([0, 1, 1]), 3)
  assert result["per_class_accuracy"][2] is None
  assert result["mean_class_accuracy"] == 0.75


def test_a_network_on_images_in_batches_that_do_not_divide():
  network = tiny()
  dataset = Dataset("made", IMAGES, LABELS)
  logits = np.asarray(net.logits(network, IMAGES.astype("float32") / 255))
  predict = evaluate.make_predict()
  np.testing.assert_allclose(predict(network, IMAGES, 5), logits, atol=1e-4)
  result = evaluate.evaluate(network, dataset, teacher=network)
  expected = (logits.argmax(1) == LABELS).mean()
  assert result["accuracy"] == pytest.approx(expected, abs=1e-5)
  assert result["agreement"] == 1.0
  assert result["images"] == 23


def test_labels_the_network_cannot_give_are_refused():
  dataset = Dataset("made", IMAGES, LABELS + 5)
  with pytest.raises(UsageError, match="made has label 14"):
    evaluate.evaluate(tiny(), dataset)


def test_other_class_names_are_refused():
  network = tiny()
  names = tuple("abcdefghij")
  spec = net.InputSpec(8, 8, 1, (0.4,), (0.3,), 10, names)
  dataset = Dataset("made", IMAGES, LABELS, tuple("abcdefghji"))
  with pytest.raises(UsageError, match="class 8 is 'j' there and 'i' here"):
    evaluate.evaluate(network.replace(spec=spec), dataset)


def test_an_open_set_by_hand():
  logits = 5.0 * np.eye(3)[[0, 1, 1, 2, 0, 2]]
  known = np.array([True, True, True, False, False, True])
  labels = np.array([0, 1, 0, 2, 3, 3])  # 3: no class the network knows
  found = evaluate.open_set_score(logits, known, labels, 3)
  assert found["per_class_accuracy"] == [0.5, 1.0, 0.0, 0.5]
  assert found["known_accuracy"] == 0.5
  assert found["unknown_accuracy"] == 0.5
  assert found["h_score"] == 0.5
  assert found["mean_class_accuracy"] == 0.5
  nothing = evaluate.open_set_score(logits, ~known & False, labels, 3)
  assert nothing["h_score"] == 0.0
