"""Logits and banks small enough to compute losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.adaptation import nrc

LOGITS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
P = np.asarray(jax.nn.softmax(LOGITS), np.float64)

BANK = np.random.default_rng(2).normal(size=(10, 4)).astype(np.float32)
BANK /= np.linalg.norm(BANK, axis=1, keepdims=True)
PREDICTIONS = np.asarray(
  jax.nn.softmax(np.random.default_rng(3).normal(size=(10, 3))), np.float64
)
ROWS = np.array([1, 4, 9, 0])  # of LOGITS in the bank


def entropies(p):
  """Return the mean entropy and the entropy of the mean of f64[n, classes]."""
  mean = p.mean(0)
  return -(p * np.log(p)).sum(1).mean(), -(mean * np.log(mean)).sum()


def banks() -> nrc.State:
  """Return a state with banks and without a network."""
  return nrc.State(
    None,  # type: ignore
    jnp.asarray(BANK),
    jnp.asarray(PREDICTIONS, jnp.float32),
    jnp.ones(10, bool),
  )


def neighbors(row, count):
  """Return the rows nearest to a row of the bank, without itself."""
  similarity = BANK @ BANK[row]
  similarity[row] = -np.inf
  return np.argsort(-similarity)[:count]
