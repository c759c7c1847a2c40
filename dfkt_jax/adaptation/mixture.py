"""A Gaussian for every class, fitted to the features of all target images.

With responsibilities r_ik, their sum n_k over the images, and weights s_ik for
the covariances:

  m_k = sum_i r_ik f_i / n_k
  S_k = sum_i s_ik (f_i - m_k)(f_i - m_k)^T / sum_i s_ik + e I
  log joint_ik = log(n_k / n) - (f_i - m_k)^T S_k^-1 (f_i - m_k) / 2
                 - log|S_k| / 2

Where e is too little for f32, with more dimensions than images, or hundreds of
them, it is raised a hundredfold until the covariance has a Cholesky factor.
"""

import jax
import jax.numpy as jnp

GREATEST = 1e2  # far above the variance of features of length 1
EXACT = jax.lax.Precision.HIGHEST  # bf16 products would drown a small e


def log_joint(
  features: jax.Array,
  responsibilities: jax.Array,
  spread: jax.Array,
  epsilon: float,
) -> jax.Array:
  """log p(f_i, class k) but for a constant, f32[rows, classes].

  Args:
    features: f32[rows, width].
    responsibilities: f32[rows, classes], r; 0 in rows of padding.
    spread: f32[rows, classes], s; likewise.
    epsilon: e, above 0.
  """
  total = jnp.maximum(responsibilities.sum(), 1e-8)

  def of_class(weights):
    own, wide = weights
    count = own.sum()
    mean = jnp.matmul(own, features, precision=EXACT)
    centred = features - mean[None] / jnp.maximum(count, 1e-8)
    scatter = jnp.matmul((wide[:, None] * centred).T, centred, precision=EXACT)
    factor = _factor(scatter / jnp.maximum(wide.sum(), 1e-8), epsilon)
    unit = jnp.eye(len(factor))
    inverse = jax.scipy.linalg.solve_triangular(factor, unit, lower=True)
    white = jnp.matmul(centred, inverse.T, precision=EXACT)
    log_determinant = 2.0 * jnp.log(jnp.diagonal(factor)).sum()
    # A class without images has a small share, not none: no infinities.
    log_share = jnp.log(jnp.maximum(count / total, 1e-30))
    return log_share - 0.5 * (jnp.square(white).sum(1) + log_determinant)

  # One class after the other: an array of rows x classes x width is too large.
  return jax.lax.map(of_class, (responsibilities.T, spread.T)).T


def _factor(covariance, epsilon):
  """The Cholesky factor of covariance + e I, with the first e that has one."""
  unit = jnp.eye(len(covariance))
  attempt = lambda e: jnp.linalg.cholesky(covariance + e * unit)

  def more(carry):
    e, _ = carry
    return 100.0 * e, attempt(100.0 * e)

  failed = lambda carry: ~jnp.isfinite(carry[1]).all() & (carry[0] < GREATEST)
  start = (jnp.float32(epsilon), attempt(epsilon))
  return jax.lax.while_loop(failed, more, start)[1]
