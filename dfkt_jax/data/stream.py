"""Batches of a random-access source, read by Grain and sharded over processes.

Indices are shuffled and cut into global batches first; every process then reads
its own shard of each. So the global batch, including its order, does not depend
on the number of processes, and a position is a single number.

Threads do the reading. Grain's worker processes (mp_prefetch) were as fast on
two busy cores (28x28 PNGs in ArrayRecord: 4,200 to 5,000 per second with
threads, 4,300 to 4,800 with processes), took 2 to 4 seconds to start, and need
a program that parses absl's flags.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax.devices.mesh import DATA
from dfkt_jax.errors import DfktError, UsageError

_MAX_EXAMPLES = 2**62
"""Length of an endless stream."""


class Source(Protocol):
  """Random access to examples."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any:
    """Return an array, or a tuple or dictionary of arrays and numbers."""
    ...


class Stream:
  """An endless iterator over batches, with a new order in every epoch.

  A batch is this process's shard of a global batch: the source's examples,
  stacked leaf by leaf along a new leading axis. The global batch has
  `batch_size` examples and may reach into the next epoch; an epoch has every
  example exactly once. `state` is a small JSON object with the position of the
  stream, without batches that were only read ahead. Use it as a context
  manager.

  Args:
    source: the examples.
    batch_size: number of examples in a global batch.
    seed: seed of the order.
    process, processes: index of this process and their number (default: those
      of JAX).
    shuffle: False keeps the source's order.
    epochs: number of epochs, after which the stream ends with a batch that may
      be smaller (default: endless).
    workers: number of reading threads (default: one per core).

  Raises:
    UsageError: the source is empty, or `batch_size` does not divide evenly
      among the processes.
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
        f" {processes} processes: expected a multiple of the processes and at"
        " least one example; change the batch size or the dataset"
      )

    def read(batch):
      try:
        return read_shard(batch)
      except DfktError as error:
        # If a worker raised it, Grain would append lines of its own.
        return _Failure(error)

    def read_shard(batch):
      """Read this process's shard of a batch, divided as evenly as possible."""
      shard = np.array_split(batch, processes)[process]
      if len(shard):
        return stack([source[int(index)] for index in shard])
      # No example is left for this process: return 0 rows of the right shape.
      return jax.tree.map(lambda x: x[:0], stack([source[int(batch[0])]]))

    indices = grain.MapDataset.range(len(source))
    if shuffle:
      indices = indices.shuffle(seed=seed % 2**32)
    # By default Grain repeats sys.maxsize times. Its length, rounded up to a
    # float, is then more than len() can return.
    epochs = epochs or _MAX_EXAMPLES // len(source)
    batches = indices.repeat(epochs).batch(batch_size).map(read)
    workers = workers or os.cpu_count() or 1
    # Each worker reads a batch, and one more is ready.
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
    """The position after the last batch that was taken."""
    return self._iterator.get_state()

  def restore(self, state: dict) -> None:
    """Continue after the last batch that had been taken at `state`."""
    self._iterator.set_state(state)

  def close(self) -> None:
    """Stop the reading threads."""
    self._iterator.close()

  def __enter__(self) -> "Stream":
    return self

  def __exit__(self, *_) -> None:
    self.close()


@dataclasses.dataclass(frozen=True)
class _Failure:
  error: DfktError


def put(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
  """Make global arrays from this process's shards, sharded along `axis`.

  A batch that does not divide evenly among the devices is replicated, if there
  is one process.

  Raises:
    UsageError: there are several processes, and the batch does not divide
      evenly among the devices.
  """
  processes, devices = jax.process_count(), mesh.shape[DATA]

  def put_one(x):
    even = x.shape[axis] * processes % devices == 0
    if not even and processes > 1:
      raise UsageError(
        f"--batch-size is {x.shape[axis] * processes} for {devices} devices"
        f" of {processes} processes: expected a multiple of {devices}; give one"
      )
    spec = PartitionSpec(*[None] * axis, DATA) if even else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_process_local_data(sharding, x)

  return jax.tree.map(put_one, tree)


def stack(examples: list) -> Any:
  """Stack the arrays of a list of trees of the same structure."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def require() -> Any:
  """Import the package grain.

  Raises:
    UsageError: grain is not installed.
  """
  try:
    import grain
  except ImportError as error:
    raise UsageError(
      f"reading with several workers failed to import grain ({error}): expected"
      " the package to be installed; run pip install grain"
    ) from error
  return grain
