"""Label-free figures of an adaptation, and warnings from them."""

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.contracts import Predictions
from dfkt_jax.evaluation import diagnostics
from dfkt_jax.evaluation.diagnostics import Diagnosis
from tests.networks import tiny


def predictions_of(decisions, padded=0):
  """Return sure predictions among four classes, with padding after them."""
  logits = 20.0 * jnp.eye(4)[jnp.asarray([*decisions, *[3] * padded])]
  valid = jnp.arange(len(logits)) < len(decisions)
  return Predictions(jnp.zeros((len(logits), 2)), logits, valid)


def diagnose(decisions, before, first, padded=0):
  pad = lambda rows: jnp.asarray([*rows, *[0] * padded], jnp.int32)
  predictions = predictions_of(decisions, padded)
  return diagnostics.diagnose(
    predictions, pad(before), pad(first), tiny(), tiny()
  )


@pytest.mark.parametrize("padded", [0, 5])
def test_figures_by_hand(padded):
  found = diagnose([0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 2, 3], padded)
  p = np.array([0.75, 0.25])
  assert found.marginal_entropy == pytest.approx(
    -(p * np.log(p)).sum() / np.log(4), rel=1e-5
  )
  assert found.source_marginal_entropy == pytest.approx(1.0, rel=1e-5)
  assert found.flip_rate == pytest.approx(0.25)
  assert found.classes_missing == 2
  assert found.confidence == pytest.approx(1.0, abs=1e-4)
  assert found.bn_drift == 0.0


GOOD = Diagnosis(*map(jnp.float32, (0.95, 0.95, 0.9, 0.02, 0.0, 0.1)))


@pytest.mark.parametrize(
  ("epoch", "changes", "expected"),
  [
    (9, {}, []),
    (1, {"flip_rate": 0.5}, []),
    (9, {"flip_rate": 0.5}, ["does not settle: 50%"]),
    (1, {"marginal_entropy": 0.1}, ["has collapsed: 0 of 10"]),
    (1, {"source_marginal_entropy": 0.83}, ["uneven: 0.83"]),
  ],
)
def test_warnings(epoch, changes, expected):
  found = GOOD._replace(**{k: jnp.float32(v) for k, v in changes.items()})
  sentences = diagnostics.warnings(found, epoch, 10)
  assert len(sentences) == len(expected)
  for sentence, part in zip(sentences, expected):
    assert part in sentence
