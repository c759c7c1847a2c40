"""How sure predictions are, f32[batch, classes] logits without labels.

`mask`, bool[batch], says which rows count; the others, such as the padding of a
last batch, change nothing. None: all of them. Natural logarithms throughout.
"""

import jax
import jax.numpy as jnp

NEVER = -1e9  # the logarithm of nothing; finite, so that gradients are


def mean(values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Mean over the rows that count; 0 where none does."""
  if mask is None:
    return values.mean(0)
  rows = mask.reshape(-1, *[1] * (values.ndim - 1))
  return jnp.where(rows, values, 0.0).sum(0) / jnp.maximum(mask.sum(), 1)


def entropies(logits: jax.Array) -> jax.Array:
  """Entropy of every prediction, f32[batch]."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(1)


def entropy(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Mean entropy of the predictions."""
  return mean(entropies(logits), mask)


def marginal_entropy(
  logits: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """Entropy of the mean prediction; log(classes) where it is balanced.

  Its negative is the information-entropy loss of Chen et al., ICCV 2019.
  """
  log_p = jax.nn.log_softmax(logits)
  count = len(logits)
  if mask is not None:
    log_p = jnp.where(mask[:, None], log_p, NEVER)
    count = jnp.maximum(mask.sum(), 1)
  # By logarithms, so that a class nobody predicts has a finite gradient.
  log_p = jax.nn.logsumexp(log_p, axis=0) - jnp.log(count)
  return -(jnp.exp(log_p) * log_p).sum()


def information_maximisation(
  logits: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """mean H(p_i) - H(mean p_i): sure of every image, undecided about them all.

  Krause et al., NeurIPS 2010; SHOT (Liang et al., ICML 2020). SHOT's code adds
  1e-5 inside its logarithms, which ours, taken of logits, do not need.
  """
  return entropy(logits, mask) - marginal_entropy(logits, mask)
