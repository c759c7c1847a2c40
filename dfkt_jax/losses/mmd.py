"""Maximum mean discrepancy of two batches, as a whole and class by class.

Discrepancies are scalars of whole batches.
"""

import chex
import jax
import jax.numpy as jnp

KERNELS = 5
FACTOR = 2.0  # between the widths of two kernels


def gaussian_kernels(
  x: jax.Array,
  mask: jax.Array,
  kernels: int = KERNELS,
  factor: float = FACTOR,
) -> jax.Array:
  """Return a sum of Gaussian kernels of all pairs of rows, f32[n, n].

    k(x_i, x_j) = sum_u exp(-|x_i - x_j|^2 / (w factor^(u - kernels // 2)))

  Long et al., "Learning Transferable Features with Deep Adaptation Networks",
  ICML 2015. w is the mean squared distance of two rows that count (`mask`,
  bool[n]), a constant to the gradient. x is f32[n, width].
  """
  chex.assert_rank(x, 2)
  chex.assert_shape(mask, (len(x),))
  own = jnp.square(x).sum(1)
  squared = own[:, None] + own[None] - 2.0 * x @ x.T
  squared = jnp.maximum(squared, 0.0) * (1.0 - jnp.eye(len(x)))
  count = mask.sum()
  pairs = jnp.where(mask[:, None] & mask[None], squared, 0.0).sum()
  width = pairs / jnp.maximum(count * (count - 1), 1)
  # The distance of equal rows consists of rounding errors.
  width = jnp.maximum(jax.lax.stop_gradient(width), 1e-4)
  return sum(
    jnp.exp(-squared / (width * factor ** (u - kernels // 2)))
    for u in range(kernels)
  )  # type: ignore


def contrastive_discrepancy(
  source: jax.Array,
  target: jax.Array,
  source_classes: jax.Array,
  target_classes: jax.Array,
  kernels: int = KERNELS,
  factor: float = FACTOR,
) -> tuple[jax.Array, jax.Array]:
  """Return the mean squared MMD within classes and between classes, f32[] each.

  Kang et al., "Contrastive Adaptation Network", CVPR 2019: the contrastive
  domain discrepancy is the first minus the second. For classes c, d:

    MMD^2_cd = mean k(s, s') + mean k(t, t') - 2 mean k(s, t),
      s, s' of c in the source, t, t' of d in the target

  Classes that either side lacks enter neither mean. A mean over no pair of
  classes is 0.

  Args:
    source: f32[n, width].
    target: f32[m, width].
    source_classes: bool[n, classes], the class of each row, if it has one.
    target_classes: bool[m, classes].
  """
  chex.assert_rank([source, target, source_classes, target_classes], 2)
  chex.assert_equal_shape_prefix([source, source_classes], 1)
  chex.assert_equal_shape_prefix([target, target_classes], 1)
  rows = jnp.concatenate([source, target])
  used = jnp.concatenate([source_classes, target_classes]).any(1)
  kernel = gaussian_kernels(rows, used, kernels, factor)
  shares = lambda of: of / jnp.maximum(of.sum(0, keepdims=True), 1)
  s, t = shares(source_classes), shares(target_classes)
  n = len(source)
  within = lambda of, k: jnp.einsum("ic,ij,jc->c", of, k, of)
  discrepancy = (
    within(s, kernel[:n, :n])[:, None]
    + within(t, kernel[n:, n:])[None]
    - 2.0 * s.T @ kernel[:n, n:] @ t
  )
  present = source_classes.any(0)[:, None] & target_classes.any(0)[None]
  same = jnp.eye(len(present), dtype=bool)
  mean = lambda of: (
    jnp.where(of, discrepancy, 0.0).sum() / jnp.maximum(of.sum(), 1)
  )
  return mean(present & same), mean(present & ~same)
