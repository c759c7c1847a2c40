"""Feature banks: a row for every target image, sharded over the mesh.

Looking up nearest neighbors, reading and writing never gather a bank: each
device works on its own rows, and only the results travel. Outside a mesh, and
where the rows do not divide evenly, the same code runs on the whole bank.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dfkt_jax.devices.mesh import DATA
from dfkt_jax.devices.sharding import data_devices

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
  """Return the `count` rows of largest inner product, i32[queries, count].

  The inner product is the cosine similarity where all rows have length 1. The
  nearest row comes first; the list of a query with fewer neighbors ends
  with -1.

  Args:
    queries: f32[queries, width].
    bank: f32[rows, width].
    own: i32[queries], a row of the bank that is excluded for the query.
    valid: bool[rows]; rows that are False are excluded for all queries.
    chunk: number of rows that are compared at once.
  """
  if own is None:
    own = jnp.full(len(queries), -1)
  if valid is None:
    valid = jnp.ones(len(bank), bool)
  chex.assert_rank([queries, bank], 2)
  chex.assert_equal_shape_suffix([queries, bank], 1)
  chex.assert_shape(own, (len(queries),))
  chex.assert_shape(valid, (len(bank),))

  def search(first, bank, valid, queries, own):
    size = min(chunk, len(bank))

    def search_chunk(index, best):
      # The last chunk reaches back over rows that were searched before.
      start = jnp.minimum(index * size, len(bank) - size)
      rows = jax.lax.dynamic_slice_in_dim(bank, start, size)
      numbers = start + jnp.arange(size)
      eligible = jax.lax.dynamic_slice_in_dim(valid, start, size)
      eligible &= numbers >= index * size
      similarity = queries @ rows.T
      eligible = eligible[None] & (first + numbers[None] != own[:, None])
      similarity = jnp.where(eligible, similarity, -jnp.inf)
      numbers = jnp.broadcast_to(first + numbers, similarity.shape)
      return _best(
        jnp.concatenate([best[0], similarity], 1),
        jnp.concatenate([best[1], numbers], 1),
        count,
      )

    shape = (len(queries), count)
    best = (jnp.full(shape, -jnp.inf), jnp.full(shape, -1))
    return jax.lax.fori_loop(0, -(-len(bank) // size), search_chunk, best)

  def sharded(first, bank, valid, queries, own):
    similarity, numbers = (
      jax.lax.all_gather(x, DATA, axis=1, tiled=True)
      for x in search(first, bank, valid, queries, own)
    )
    return _best(similarity, numbers, count)[1]

  whole = lambda *args: search(0, *args)[1]
  return _on_own_rows(sharded, whole, (bank, valid), (queries, own))


def _best(similarity, numbers, count):
  similarity, place = jax.lax.top_k(similarity, count)
  return similarity, jnp.take_along_axis(numbers, place, axis=1)


def read(bank: jax.Array, rows: jax.Array) -> jax.Array:
  """Return `bank[rows]` for i32 rows of any shape, on every device.

  Rows that do not exist, such as the -1 of `nearest`, are read as zero.
  """
  chex.assert_type(rows, int)

  def own(first, bank, rows):
    place = rows - first
    here = (place >= 0) & (place < len(bank))
    values = bank[jnp.clip(place, 0, len(bank) - 1)]
    wide = here.reshape(*here.shape, *[1] * (bank.ndim - 1))
    return jnp.where(wide, values, 0)

  def sharded(first, bank, rows):
    # A sum of bools is an integer.
    return jax.lax.psum(own(first, bank, rows), DATA).astype(bank.dtype)

  whole = lambda bank, rows: own(0, bank, rows).astype(bank.dtype)
  return _on_own_rows(sharded, whole, (bank,), (rows,))


def write(bank: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
  """Return `bank` with `values` at i32[count] rows.

  Rows outside the bank are dropped. If a row occurs twice, its last value
  counts, on every device.

  Args:
    bank: [rows, ...].
    values: [count, ...], with the trailing axes of the bank.
  """
  chex.assert_rank(rows, 1)
  chex.assert_type(rows, int)
  chex.assert_shape(values, (len(rows), *bank.shape[1:]))
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
  sharded: Callable,
  whole: Callable,
  banks: tuple[jax.Array, ...],
  others: tuple[jax.Array, ...],
  out: PartitionSpec | None = None,
):
  """Run sharded(first row, *banks, *others) on every device.

  Runs whole(*banks, *others) instead where the banks are not sharded.
  """
  devices = data_devices()
  rows = len(banks[0])
  if devices == 1 or rows % devices:
    return whole(*banks, *others)

  def body(*arrays):
    first = jax.lax.axis_index(DATA) * (rows // devices)
    return sharded(first, *arrays)

  replicated, split = PartitionSpec(), PartitionSpec(DATA)
  return jax.shard_map(
    body,
    in_specs=(*[split] * len(banks), *[replicated] * len(others)),
    out_specs=out or replicated,
    # The results of `all_gather` and `psum` are the same on every device.
    check_vma=False,
  )(*banks, *others)
