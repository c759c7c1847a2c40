"""Random subsets of a batch of optimized images."""

import jax

from dfkt_jax.contracts import Batch


def subset(key: jax.Array, batch: Batch, count: int) -> Batch:
  """Return the whole batch, or `count` random images of it if that is fewer."""
  if count >= len(batch.images):
    return batch
  chosen = jax.random.permutation(key, len(batch.images))[:count]
  return jax.tree.map(lambda x: x[chosen], batch)
