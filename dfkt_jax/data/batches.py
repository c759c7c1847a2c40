"""Arrays in batches of one shape."""

from collections.abc import Iterator

import numpy as np


def padded_batches(
  images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yield (images [batch, ...], labels [batch], mask bool[batch]) in order.

  The last batch is padded with zeros, where the mask is False, so that a
  compiled function always has one shape.

  Raises:
    ValueError: the numbers of labels and images differ, or batch_size is below
      1.
  """
  if len(images) != len(labels) or batch_size < 1:
    raise ValueError(
      f"{len(images)} images, {len(labels)} labels, batch_size {batch_size}"
    )
  for start in range(0, len(images), batch_size):
    batch = images[start : start + batch_size], labels[start:][:batch_size]
    count = len(batch[0])
    x, y = (
      np.concatenate(
        [part, np.zeros((batch_size - count, *part.shape[1:]), part.dtype)]
      )
      for part in batch
    )
    yield x, y, np.arange(batch_size) < count
