"""How the examples of a batch lie to each other.

Embeddings are f32[batch, width].
"""

import jax
import jax.numpy as jnp


def normalise(x: jax.Array) -> jax.Array:
  """Rows of length 1; the gradient at zero is finite."""
  squared = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(squared + 1e-12)


def info_nce(
  queries: jax.Array, keys: jax.Array, temperature: float
) -> jax.Array:
  """-log of the softmax share of a query's own key among all keys, the mean.

  van den Oord et al., "Representation Learning with Contrastive Predictive
  Coding", 2018, with the batch's other keys as negatives. Rows of length 1.
  """
  similarity = queries @ keys.T / temperature
  return -jnp.diagonal(jax.nn.log_softmax(similarity)).mean()


def distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """|x_i - y_j| over the mean of those that are not 0, f32[batch, batch].

  Park et al., "Relational Knowledge Distillation", CVPR 2019, equation 4.
  """
  squared = jnp.square(x[:, None] - y[None]).sum(-1)
  apart = squared > 1e-12
  # The square root has no gradient at zero, where x and y are the same.
  norms = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
  mean = norms.sum() / jnp.maximum(apart.sum(), 1)
  return norms / jnp.maximum(mean, 1e-12)


def angles(x: jax.Array, vertex: jax.Array) -> jax.Array:
  """cos of the angle x_i, vertex_j, x_k, f32[batch j, batch i, batch k].

  Park et al. 2019, equation 6. Where two of the points are one it is 0. From
  inner products of the rows, so that no array has three batches and the width.
  """
  between = x @ vertex.T  # [i, j]
  own = jnp.square(vertex).sum(1)
  # (x_i - v_j) . (x_k - v_j)
  inner = (
    (x @ x.T)[None]
    - between.T[:, :, None]
    - between.T[:, None, :]
    + own[:, None, None]
  )
  squared = jnp.diagonal(inner, axis1=1, axis2=2)  # [j, i]
  apart = squared > 1e-5
  scale = jnp.where(apart, jax.lax.rsqrt(jnp.where(apart, squared, 1.0)), 0.0)
  return inner * scale[:, :, None] * scale[:, None, :]


def channels(x: jax.Array, y: jax.Array) -> jax.Array:
  """How differently channels go together in two maps of the same images.

  Of f32[batch, height, width, channels]: the products of an image's channels
  with each other, summed over places, are a matrix whose rows are brought to
  length 1; the mean over rows of their squared distance, then over the batch.
  Hou and Zheng, "Visualizing Adapted Knowledge in Domain Transfer", CVPR 2021.
  """

  def products(maps):
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    return normalise(jnp.einsum("bpc,bpd->bcd", flat, flat))

  return jnp.square(products(x) - products(y)).sum(2).mean()


def huber(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean Huber loss with threshold 1 (Park et al. 2019, equation 5)."""
  difference = jnp.abs(x - y)
  small = jnp.minimum(difference, 1.0)
  return (small * (difference - 0.5 * small)).mean()
