"""Entropies of predictions, from logits f32[..., classes] without labels.

`entropy` is per example, f32[...]. The others are scalars of the whole batch;
their `weights`, bool[...] or f32[...], say how much an example counts, so that
the padding of a last batch (weight 0) changes nothing. None: all examples count
alike. Natural logarithms throughout.
"""

import math

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.losses import reduce


def entropy(logits: jax.Array) -> jax.Array:
  """Return the entropy of every prediction, f32[...]."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(-1)


def marginal_entropy(
  logits: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Return the entropy of the mean prediction of the batch, f32[].

  It is log(classes) where the predictions are balanced. Its negative is the
  information-entropy loss of Chen et al., ICCV 2019.
  """
  log_p = jax.nn.log_softmax(logits)
  total = math.prod(logits.shape[:-1])
  if weights is not None:
    chex.assert_shape(weights, logits.shape[:-1])
    rows = weights[..., None]
    if weights.dtype != bool:
      log_p = log_p + jnp.log(jnp.where(rows > 0, rows, 1.0))
    log_p = jnp.where(rows > 0, log_p, reduce.LOG_ZERO)
    total = jnp.where(weights.sum() > 0, weights.sum(), 1)
  # In logarithms, so that the gradient of a class of probability 0 is finite.
  axes = tuple(range(logits.ndim - 1))
  log_p = jax.nn.logsumexp(log_p, axis=axes) - jnp.log(total)
  return -(jnp.exp(log_p) * log_p).sum()


def information_maximization(
  logits: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Return mean H(p_i) - H(mean p_i) of the batch, f32[].

  It is lowest where the network is sure of every image and its decisions are
  balanced. Krause et al., NeurIPS 2010; SHOT (Liang et al., ICML 2020). SHOT's
  code adds 1e-5 inside its logarithms, which ours, computed from logits, do not
  need.
  """
  entropies = reduce.mean(entropy(logits), weights)
  return entropies - marginal_entropy(logits, weights)
