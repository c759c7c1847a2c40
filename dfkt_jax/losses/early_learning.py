"""Early-learning regularization: keep what was predicted early.

Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy
Labels", NeurIPS 2020.
"""

import chex
import jax
import jax.numpy as jnp

CLOSEST = 1.0 - 1e-4  # log(1 - agreement) is unbounded at an agreement of 1


def early_learning(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """Return log(1 - <t_i, q_i>) of probabilities f32[..., classes], f32[...].

  It is lowest where the predictions q agree with the targets t. Targets are
  running means of earlier q and constants to the gradient.
  """
  chex.assert_equal_shape([predictions, targets])
  agreement = (jax.lax.stop_gradient(targets) * predictions).sum(-1)
  return jnp.log1p(-jnp.minimum(agreement, CLOSEST))
