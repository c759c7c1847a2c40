"""Relations between the examples of a batch, and between channels.

Embeddings are f32[batch, width].
"""

import chex
import jax
import jax.numpy as jnp


def normalize(x: jax.Array) -> jax.Array:
  """Scale rows to length 1; the gradient at zero is finite."""
  squared = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(squared + 1e-12)


def info_nce(
  queries: jax.Array, keys: jax.Array, temperature: float
) -> jax.Array:
  """Return -log of the softmax share of each query's own key, f32[batch].

  van den Oord et al., "Representation Learning with Contrastive Predictive
  Coding", 2018, with the batch's other keys as negatives. Rows have length 1.
  """
  chex.assert_rank(queries, 2)
  chex.assert_equal_shape([queries, keys])
  similarity = queries @ keys.T / temperature
  return -jnp.diagonal(jax.nn.log_softmax(similarity))


def distances(x: jax.Array, y: jax.Array) -> jax.Array:
  """Return |x_i - y_j| over the mean of the nonzero ones, f32[batch, batch].

  Park et al., "Relational Knowledge Distillation", CVPR 2019, equation 4.
  """
  chex.assert_rank(x, 2)
  chex.assert_equal_shape([x, y])
  squared = jnp.square(x[:, None] - y[None]).sum(-1)
  apart = squared > 1e-12
  # The square root has no gradient at zero, where x and y are the same.
  norms = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
  mean = norms.sum() / jnp.maximum(apart.sum(), 1)
  return norms / jnp.maximum(mean, 1e-12)


def angles(x: jax.Array, vertex: jax.Array) -> jax.Array:
  """Return the cosine of each angle x_i, vertex_j, x_k, f32[j, i, k].

  Park et al. 2019, equation 6. The cosine is 0 where two of the points
  coincide. It is computed from inner products of the rows, so that no array has
  three batch axes and the width.
  """
  chex.assert_rank(x, 2)
  chex.assert_equal_shape([x, vertex])
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
  """Compare how channels covary in two maps of the same images, f32[batch].

  Maps are f32[batch, height, width, channels]; their heights and widths may
  differ. The inner products of an image's channels, summed over places, form a
  matrix whose rows are normalized to length 1; the loss is the mean over rows
  of the squared distance between both matrices' rows. Hou and Zheng,
  "Visualizing Adapted Knowledge in Domain Transfer", CVPR 2021.
  """
  chex.assert_rank([x, y], 4)

  def products(maps):
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    return normalize(jnp.einsum("bpc,bpd->bcd", flat, flat))

  x, y = products(x), products(y)
  chex.assert_equal_shape([x, y])
  return jnp.square(x - y).sum(2).mean(1)


def huber(x: jax.Array, y: jax.Array) -> jax.Array:
  """Return the mean Huber loss over the last axis, f32[...].

  Its threshold is 1 (Park et al. 2019, equation 5).
  """
  chex.assert_equal_shape([x, y])
  difference = jnp.abs(x - y)
  small = jnp.minimum(difference, 1.0)
  return (small * (difference - 0.5 * small)).mean(-1)
