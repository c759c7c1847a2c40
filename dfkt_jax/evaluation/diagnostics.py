"""Figures of an adaptation that need no labels, and warnings from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Predictions
from dfkt_jax.losses import reduce
from dfkt_jax.network import Network, Task
from dfkt_jax.network.drift import batch_norm_drift

# Least marginal entropies of the decisions, over log K.
COLLAPSED = 0.2  # of the adapted network: below it few classes are left
UNEVEN = 0.87  # of the source
RESTLESS = 0.2  # of the flip rate, once an adaptation should have settled
SETTLED = 5  # epochs


class Diagnosis(NamedTuple):
  """Figures of all target images; f32 scalars."""

  marginal_entropy: jax.Array  # of the decisions, over log K: 1 is balanced
  source_marginal_entropy: jax.Array  # of the source's decisions
  confidence: jax.Array  # mean top probability
  flip_rate: jax.Array  # share of decisions that changed in the last epoch
  classes_missing: jax.Array  # classes that are never predicted
  bn_drift: jax.Array  # see network.drift


def decide(predictions: Predictions, task: Task) -> jax.Array:
  """Return what the network decides for every image, i32[rows]."""
  return task.decisions(predictions.logits)


def diagnose(
  predictions: Predictions,
  before: jax.Array,
  first: jax.Array,
  source: Network,
  adapted: Network,
) -> Diagnosis:
  """Return the figures of an adapted network.

  Args:
    predictions: of the adapted network.
    before: i32[rows], its decisions an epoch ago.
    first: i32[rows], the decisions of the source.
  """
  classes, valid = predictions.logits.shape[1], predictions.valid
  decisions = decide(predictions, source.spec.task)
  shares = _shares(decisions, valid, classes)
  confidence = jax.nn.softmax(predictions.logits).max(1)
  flips = (decisions != before).astype(jnp.float32)
  return Diagnosis(
    _evenness(shares),
    _evenness(_shares(first, valid, classes)),
    reduce.mean(confidence, valid),
    reduce.mean(flips, valid),
    (shares == 0).sum().astype(jnp.float32),
    batch_norm_drift(source, adapted),
  )


def warnings(found: Diagnosis, epoch: int, classes: int) -> list[str]:
  """Return a sentence for each figure that looks wrong after N epochs.

  The text before the first colon names the kind of warning.
  """
  sentences = []
  if found.source_marginal_entropy < UNEVEN:
    sentences.append(
      "the source's decisions on the target are uneven:"
      f" {found.source_marginal_entropy:.2f} of the entropy of even ones; if"
      " its classes are uneven, methods that balance decisions do harm: lower"
      " --diversity-weight, where there is one, in a new --workdir"
    )
  if found.marginal_entropy < COLLAPSED:
    sentences.append(
      f"the adaptation has collapsed: {int(found.classes_missing)} of {classes}"
      " classes are never predicted; lower --lr, or raise --batch-size, in a"
      " new --workdir"
    )
  if epoch > SETTLED and found.flip_rate > RESTLESS:
    sentences.append(
      f"the adaptation does not settle: {found.flip_rate:.0%} of the decisions"
      f" changed in epoch {epoch}; lower --lr in a new --workdir"
    )
  return sentences


def _shares(decisions, valid, classes):
  return reduce.mean(jax.nn.one_hot(decisions, classes), valid)


def _evenness(shares):
  entropy = -(shares * jnp.log(jnp.maximum(shares, 1e-12))).sum()
  return entropy / jnp.log(len(shares))
