"""How an adaptation fares, without labels; and when it has gone wrong."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.adaptation.ada_bn import drift
from dfkt_jax.adaptation.contract import Answers
from dfkt_jax.losses import information
from dfkt_jax.network import Network

COLLAPSED = 0.2  # of the marginal entropy's share: fewer classes than that
SKEWED = 0.87  # of the same, of the source's decisions
RESTLESS = 0.2  # of the flip rate, once an adaptation should have settled
SETTLED = 5  # epochs


class Diagnosis(NamedTuple):
  """Of all target images; f32 scalars."""

  marginal_entropy: jax.Array  # of the decisions, over log K: 1 is balanced
  source_marginal_entropy: jax.Array  # the same of the source's decisions
  confidence: jax.Array  # mean top probability
  flip_rate: jax.Array  # share of decisions that changed in the last epoch
  classes_missing: jax.Array  # that are never predicted
  bn_drift: jax.Array  # see ada_bn.drift


def decide(answers: Answers) -> jax.Array:
  """i32[rows], the top class."""
  return answers.logits.argmax(1).astype(jnp.int32)


def diagnose(
  answers: Answers,
  before: jax.Array,
  first: jax.Array,
  source: Network,
  adapted: Network,
) -> Diagnosis:
  """Decisions `before` are of an epoch ago, `first` the source's, i32[rows]."""
  classes = answers.logits.shape[1]
  decisions, valid = decide(answers), answers.valid
  shares = _shares(decisions, valid, classes)
  confidence = jax.nn.softmax(answers.logits).max(1)
  flips = (decisions != before).astype(jnp.float32)
  return Diagnosis(
    _evenness(shares),
    _evenness(_shares(first, valid, classes)),
    information.mean(confidence, valid),
    information.mean(flips, valid),
    (shares == 0).sum().astype(jnp.float32),
    drift(source, adapted),
  )


def complaints(found: Diagnosis, epoch: int, classes: int) -> list[str]:
  """A sentence for everything that looks wrong after `epoch` epochs."""
  sentences = []
  if found.source_marginal_entropy < SKEWED:
    sentences.append(
      "the source's decisions on the target are uneven:"
      f" {found.source_marginal_entropy:.2f} of the entropy of even ones; if"
      " its classes are, methods that even decisions out do harm: lower"
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
  return information.mean(jax.nn.one_hot(decisions, classes), valid)


def _evenness(shares):
  entropy = -(shares * jnp.log(jnp.maximum(shares, 1e-12))).sum()
  return entropy / jnp.log(len(shares))
