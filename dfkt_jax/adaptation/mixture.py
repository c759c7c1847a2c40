"""A Gaussian for every class, fitted to the features of all target images.

With responsibilities r_ik, their sums n_k over the images, and weights s_ik for
the covariances:

  m_k = sum_i r_ik f_i / n_k
  S_k = sum_i s_ik (f_i - m_k)(f_i - m_k)^T / sum_i s_ik + e I
  log joint_ik = log(n_k / n) - (f_i - m_k)^T S_k^-1 (f_i - m_k) / 2
                 - log|S_k| / 2

In f32, e can be too small: with more dimensions than images, or with hundreds
of dimensions. It is then multiplied by 100 until the covariance has a Cholesky
factor.
"""

import chex
import jax
import jax.numpy as jnp

GREATEST = 1e2  # far above the variance of features of length 1
EXACT = jax.lax.Precision.HIGHEST  # in bf16 products a small e would vanish


def log_joint(
  features: jax.Array,
  responsibilities: jax.Array,
  spread: jax.Array,
  epsilon: float,
) -> jax.Array:
  """Return log p(f_i, class k) up to a constant, f32[rows, classes].

  Args:
    features: f32[rows, width].
    responsibilities: f32[rows, classes], r; 0 in rows of padding.
    spread: f32[rows, classes], s; 0 in rows of padding.
    epsilon: e, above 0.
  """
  chex.assert_rank(features, 2)
  chex.assert_equal_shape([responsibilities, spread])
  chex.assert_equal_shape_prefix([features, spread], 1)
  total = jnp.maximum(responsibilities.sum(), 1e-8)

  def one_class(weights):
    own, wide = weights
    count = own.sum()
    mean = jnp.matmul(own, features, precision=EXACT)
    centered = features - mean[None] / jnp.maximum(count, 1e-8)
    scatter = jnp.matmul(
      (wide[:, None] * centered).T, centered, precision=EXACT
    )
    factor = _factor(scatter / jnp.maximum(wide.sum(), 1e-8), epsilon)
    unit = jnp.eye(len(factor))
    inverse = jax.scipy.linalg.solve_triangular(factor, unit, lower=True)
    white = jnp.matmul(centered, inverse.T, precision=EXACT)
    log_determinant = 2.0 * jnp.log(jnp.diagonal(factor)).sum()
    # A class without images gets a small share instead of none, so that its
    # logarithm is finite.
    log_share = jnp.log(jnp.maximum(count / total, 1e-30))
    return log_share - 0.5 * (jnp.square(white).sum(1) + log_determinant)

  # One class after another: an array of rows x classes x width is too large.
  return jax.lax.map(one_class, (responsibilities.T, spread.T)).T


def _factor(covariance, epsilon):
  """Return the Cholesky factor of covariance + e I for the first e with one."""
  unit = jnp.eye(len(covariance))
  attempt = lambda e: jnp.linalg.cholesky(covariance + e * unit)

  def raise_e(carry):
    e, _ = carry
    return 100.0 * e, attempt(100.0 * e)

  failed = lambda carry: ~jnp.isfinite(carry[1]).all() & (carry[0] < GREATEST)
  start = (jnp.float32(epsilon), attempt(epsilon))
  return jax.lax.while_loop(failed, raise_e, start)[1]
