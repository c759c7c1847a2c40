"""Banks: a row for every target image, split over the devices of the mesh.

Nearest neighbours, reading and writing never bring a bank together: each device
looks at its own rows, and only what is asked for travels. Outside a mesh, and
where the rows do not divide evenly, the same code runs on the bank as a whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dfkt_jax import parallel
from dfkt_jax.parallel import DATA

CHUNK = 65_536  # rows whose similarities are in memory together


def nearest(
  queries: jax.Array,
  bank: jax.Array,
  count: int,
  *,
  own: jax.Array | None = None,
  valid: jax.Array | None = None,
  chunk: int = CHUNK,
) -> jax.Array:
  """The `count` rows with the largest inner product, i32[queries, count].

  Cosine similarity where all rows have length 1. The nearest comes first; -1
  fills the list of a query that has fewer neighbours.

  Args:
    queries: f32[queries, width].
    bank: f32[rows, width].
    own: i32[queries], a row of the bank that is not a query's neighbour.
    valid: bool[rows]; the others are nobody's neighbours.
  """
  if own is None:
    own = jnp.full(len(queries), -1)
  if valid is None:
    valid = jnp.ones(len(bank), bool)

  def search(first, bank, valid, queries, own):
    size = min(chunk, len(bank))

    def look(index, best):
      # The last chunk reaches back, over rows that were looked at.
      start = jnp.minimum(index * size, len(bank) - size)
      rows = jax.lax.dynamic_slice_in_dim(bank, start, size)
      numbers = start + jnp.arange(size)
      fair = jax.lax.dynamic_slice_in_dim(valid, start, size)
      fair &= numbers >= index * size
      similarity = queries @ rows.T
      fair = fair[None] & (first + numbers[None] != own[:, None])
      similarity = jnp.where(fair, similarity, -jnp.inf)
      numbers = jnp.broadcast_to(first + numbers, similarity.shape)
      return _best(
        jnp.concatenate([best[0], similarity], 1),
        jnp.concatenate([best[1], numbers], 1),
        count,
      )

    shape = (len(queries), count)
    best = (jnp.full(shape, -jnp.inf), jnp.full(shape, -1))
    return jax.lax.fori_loop(0, -(-len(bank) // size), look, best)

  def merge(first, bank, valid, queries, own):
    similarity, numbers = (
      jax.lax.all_gather(x, DATA, axis=1, tiled=True)
      for x in search(first, bank, valid, queries, own)
    )
    return _best(similarity, numbers, count)[1]

  alone = lambda *args: search(0, *args)[1]
  return _on_own_rows(merge, alone, (bank, valid), (queries, own))


def _best(similarity, numbers, count):
  similarity, place = jax.lax.top_k(similarity, count)
  return similarity, jnp.take_along_axis(numbers, place, axis=1)


def read(bank: jax.Array, rows: jax.Array) -> jax.Array:
  """`bank[rows]` for i32 rows of any shape, on every device.

  Zero for rows that are not there, as the -1 of `nearest`.
  """

  def own(first, bank, rows):
    place = rows - first
    here = (place >= 0) & (place < len(bank))
    values = bank[jnp.clip(place, 0, len(bank) - 1)]
    wide = here.reshape(*here.shape, *[1] * (bank.ndim - 1))
    return jnp.where(wide, values, 0)

  def merge(first, bank, rows):
    # Of bool banks it is a sum of integers.
    return jax.lax.psum(own(first, bank, rows), DATA).astype(bank.dtype)

  alone = lambda bank, rows: own(0, bank, rows).astype(bank.dtype)
  return _on_own_rows(merge, alone, (bank,), (rows,))


def write(bank: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
  """`bank` with `values` at i32[count] rows; those outside are dropped.

  Of a row that comes twice the last value stands, on every device.
  """
  order = jnp.arange(len(rows))
  again = (rows[:, None] == rows[None]) & (order[:, None] < order[None])
  rows = jnp.where(again.any(1), len(bank), rows)

  def own(first, bank, rows, values):
    place = rows - first
    # A negative number would count from the end.
    place = jnp.where(place < 0, len(bank), place)
    return bank.at[place].set(values, mode="drop")

  return _on_own_rows(
    own,
    lambda bank, rows, values: own(0, bank, rows, values),
    (bank,),
    (rows, values),
    PartitionSpec(DATA),
  )


def _on_own_rows(
  shared: Callable,
  alone: Callable,
  banks: tuple[jax.Array, ...],
  others: tuple[jax.Array, ...],
  out: PartitionSpec | None = None,
):
  """shared(first row, *banks, *others) on every device, or alone(...)."""
  devices = parallel.data_devices()
  rows = len(banks[0])
  if devices == 1 or rows % devices:
    return alone(*banks, *others)

  def body(*arrays):
    first = jax.lax.axis_index(DATA) * (rows // devices)
    return shared(first, *arrays)

  everywhere, split = PartitionSpec(), PartitionSpec(DATA)
  return jax.shard_map(
    body,
    in_specs=(*[split] * len(banks), *[everywhere] * len(others)),
    out_specs=out or everywhere,
    # What `all_gather` and `psum` answer is the same everywhere.
    check_vma=False,
  )(*banks, *others)
