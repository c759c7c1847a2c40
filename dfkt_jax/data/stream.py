"""Batches of a random-access source through Grain, shared out over processes.

Indices are shuffled and cut into global batches first; every process then reads
its own piece of each. So the global batch, its order included, does not depend
on the number of processes, and a position is a single number.

Reading is done by threads. Grain's worker processes (mp_prefetch) were as fast
on two busy cores (28x28 PNGs out of ArrayRecord: 4,200 to 5,000 a second with
threads, 4,300 to 4,800 with processes), took 2 to 4 seconds to start, and want
absl's flags parsed by the program.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax.errors import DfktError, UsageError
from dfkt_jax.parallel import DATA

_EXAMPLES = 2**62
"""An endless stream ends after so many."""


class Source(Protocol):
  """What can be read in any order."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any:
    """An array, or a tuple or dictionary of arrays and numbers."""
    ...


class Stream:
  """An endless iterator over batches; every epoch is in a new order.

  It answers what the source answers with arrays stacked along a new leading
  axis: this process's piece of a global batch, which is of `batch_size`
  examples and may reach into the next epoch. Within an epoch every example
  comes exactly once. `state` is a small JSON object and says where it stands;
  what was read ahead does not count. Use it as a context manager.

  Args:
    process, processes: whose piece (default: as JAX counts them).
    shuffle: False keeps the source's order.
    epochs: after so many it ends, with a last batch that may be short.
    workers: threads that read (default: one a core).

  Raises:
    UsageError: the source is empty, or `batch_size` cannot be shared out.
  """

  def __init__(
    self,
    source: Source,
    batch_size: int,
    seed: int = 0,
    *,
    process: int | None = None,
    processes: int | None = None,
    shuffle: bool = True,
    epochs: int | None = None,
    workers: int | None = None,
  ):
    grain = require()
    process = jax.process_index() if process is None else process
    processes = processes or jax.process_count()
    if not len(source) or batch_size < 1 or batch_size % processes:
      raise UsageError(
        f"--batch-size is {batch_size} for {len(source)} examples and"
        f" {processes} processes: give a multiple of the processes, and a"
        " dataset that is not empty"
      )

    def read(batch):
      try:
        return own_piece(batch)
      except DfktError as error:
        # Raised in a worker it would come with Grain's own lines behind it.
        return _Failure(error)

    def own_piece(batch):
      """Short batches are shared out as evenly as they can be."""
      own = np.array_split(batch, processes)[process]
      if len(own):
        return stack([source[int(index)] for index in own])
      # Nothing is left for this process: no rows, but of the right shape.
      return jax.tree.map(lambda x: x[:0], stack([source[int(batch[0])]]))

    indices = grain.MapDataset.range(len(source))
    if shuffle:
      indices = indices.shuffle(seed=seed % 2**32)
    # Without a number Grain repeats sys.maxsize times, and its length, rounded
    # up to a float, is then more than len() may answer.
    epochs = epochs or _EXAMPLES // len(source)
    batches = indices.repeat(epochs).batch(batch_size).map(read)
    workers = workers or os.cpu_count() or 1
    # A batch in the hands of each worker and one ready.
    options = grain.ReadOptions(
      num_threads=workers, prefetch_buffer_size=workers + 1
    )
    self._iterator = iter(batches.to_iter_dataset(options))

  def __iter__(self) -> Iterator[Any]:
    return self

  def __next__(self) -> Any:
    batch = next(self._iterator)
    if isinstance(batch, _Failure):
      raise batch.error
    return batch

  @property
  def state(self) -> dict:
    return self._iterator.get_state()

  def restore(self, state: dict) -> None:
    """Goes on behind the last batch that had been taken at `state`."""
    self._iterator.set_state(state)

  def close(self) -> None:
    self._iterator.close()

  def __enter__(self) -> "Stream":
    return self

  def __exit__(self, *_) -> None:
    self.close()


@dataclasses.dataclass(frozen=True)
class _Failure:
  error: DfktError


def put(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
  """This process's pieces as global arrays, split over the mesh along `axis`.

  Raises:
    UsageError: several processes, and a batch that does not divide evenly.
  """
  processes, parts = jax.process_count(), mesh.shape[DATA]

  def put_one(x):
    even = x.shape[axis] * processes % parts == 0
    if not even and processes > 1:
      raise UsageError(
        f"--batch-size is {x.shape[axis] * processes} for {parts} devices"
        f" of {processes} processes: give a multiple of {parts}"
      )
    spec = PartitionSpec(*[None] * axis, DATA) if even else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_process_local_data(sharding, x)

  return jax.tree.map(put_one, tree)


def stack(examples: list) -> Any:
  """One tree of arrays from a list of like trees."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def require() -> Any:
  """The package grain, or a UsageError that says how to get it."""
  try:
    import grain
  except ImportError as error:
    raise UsageError(
      f"reading in several workers needs grain ({error}): run pip install grain"
    ) from error
  return grain
