"""Label-free figures of an adaptation, and what is said of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.adaptation import diagnostics
from dfkt_jax.adaptation.contract import Answers
from dfkt_jax.adaptation.diagnostics import Diagnosis
from tests.networks import tiny


def answers_of(decisions, padded=0):
  """Of so sure decisions among four classes, and of padding after them."""
  logits = 20.0 * jnp.eye(4)[jnp.asarray([*decisions, *[3] * padded])]
  valid = jnp.arange(len(logits)) < len(decisions)
  return Answers(jnp.zeros((len(logits), 2)), logits, valid)


def diagnose(decisions, before, first, padded=0):
  pad = lambda rows: jnp.asarray([*rows, *[0] * padded], jnp.int32)
  answers = answers_of(decisions, padded)
  return diagnostics.diagnose(answers, pad(before), pad(first), tiny(), tiny())


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
def test_what_is_said(epoch, changes, expected):
  found = GOOD._replace(**{k: jnp.float32(v) for k, v in changes.items()})
  said = diagnostics.complaints(found, epoch, 10)
  assert len(said) == len(expected)
  for sentence, part in zip(said, expected):
    assert part in sentence
