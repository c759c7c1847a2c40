"""Early-learning regularisation: what was predicted early is kept.

Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy
Labels", NeurIPS 2020.
"""

import jax
import jax.numpy as jnp

CLOSEST = 1.0 - 1e-4  # the logarithm has no bound at 1


def early_learning(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """mean_i log(1 - <t_i, q_i>), of f32[batch, classes] probabilities.

  Least where q agrees with the targets t, running means of earlier q, which
  are constants to the gradient.
  """
  agreement = (jax.lax.stop_gradient(targets) * predictions).sum(1)
  return jnp.log1p(-jnp.minimum(agreement, CLOSEST)).mean()
