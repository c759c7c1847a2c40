"""Sharded banks against plain NumPy, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.devices.mesh import DATA, make_mesh
from dfkt_jax.memory import feature_bank

RNG = np.random.default_rng(0)
BANK = RNG.normal(size=(64, 5)).astype(np.float32)
QUERIES = RNG.normal(size=(6, 5)).astype(np.float32)


@pytest.fixture(params=[1, 8], ids=["one device", "eight"])
def mesh(request):
  mesh = make_mesh(request.param)
  with jax.set_mesh(mesh):
    yield mesh


def on(mesh, x):
  spec = jax.sharding.PartitionSpec(DATA)
  return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))


@pytest.mark.parametrize("chunk", [3, 8, 1000])
def test_nearest_rows_are_numpys(mesh, chunk):
  own = np.array([0, 63, -1, 5, 8, 40])
  valid = RNG.uniform(size=64) < 0.8
  find = jax.jit(
    lambda q, b, o, v: feature_bank.nearest(
      q, b, 4, own=o, valid=v, chunk=chunk
    )
  )
  found = find(QUERIES, on(mesh, BANK), own, on(mesh, valid))
  similarity = QUERIES @ BANK.T
  similarity[:, ~valid] = -np.inf
  for query, row in enumerate(own):
    if row >= 0:
      similarity[query, row] = -np.inf
  expected = np.argsort(-similarity, axis=1)[:, :4]
  np.testing.assert_array_equal(found, expected)


def test_more_neighbors_than_a_device_has_rows(mesh):
  found = jax.jit(lambda q, b: feature_bank.nearest(q, b, 20))(
    QUERIES, on(mesh, BANK)
  )
  expected = np.argsort(-(QUERIES @ BANK.T), axis=1)[:, :20]
  np.testing.assert_array_equal(found, expected)


def test_missing_neighbors_are_minus_one_and_read_as_zero(mesh):
  few = np.arange(64) < 3
  find = jax.jit(lambda q, b, v: feature_bank.nearest(q, b, 70, valid=v))
  bank = on(mesh, BANK)
  found = find(QUERIES, bank, on(mesh, few))
  assert found.shape == (6, 70)
  assert (found[:, 3:] == -1).all()
  read = jax.jit(feature_bank.read)(bank, found)
  assert (read[:, 3:] == 0).all()
  assert (read[:, :3] != 0).all()


def test_the_last_value_of_a_repeated_row_counts(mesh):
  values = np.arange(20.0, dtype=np.float32).reshape(4, 5)
  rows = np.array([9, 31, 9, 9])
  written = jax.jit(feature_bank.write)(on(mesh, BANK), rows, values)
  np.testing.assert_array_equal(written[9], values[3])
  np.testing.assert_array_equal(written[31], values[1])


def test_rows_are_read_and_written(mesh):
  rows = np.array([[63, 0], [7, 8]])
  read = jax.jit(feature_bank.read)(on(mesh, BANK), rows)
  np.testing.assert_array_equal(read, BANK[rows])
  values = np.arange(15.0, dtype=np.float32).reshape(3, 5)
  written = jax.jit(feature_bank.write)(
    on(mesh, BANK), np.array([9, 64, 31]), values
  )
  expected = BANK.copy()
  expected[[9, 31]] = values[[0, 2]]  # there is no row 64
  np.testing.assert_array_equal(written, expected)
  assert written.sharding.num_devices == mesh.size


def test_a_bank_stays_sharded():
  mesh = make_mesh(8)
  with jax.set_mesh(mesh):

    def step(bank, rows, queries):
      near = feature_bank.nearest(queries, bank, 3)
      return feature_bank.write(bank, rows, queries), feature_bank.read(
        bank, near
      )

    bank = on(mesh, np.zeros((8 * 1000, 5), np.float32))
    rows = jnp.arange(6)
    compiled = jax.jit(step).lower(bank, rows, QUERIES).compile()
    text = compiled.as_text()
  # A device holds 1,000 rows, and never an array of all 8,000.
  assert "f32[1000,5]" in text
  assert "[8000," not in text


def test_integers_and_flags_are_kept_in_banks_too(mesh):
  labels = np.arange(64, dtype=np.int32)
  bank = on(mesh, labels)
  assert jax.jit(feature_bank.read)(bank, np.array([3, 60])).tolist() == [3, 60]
  bank = jax.jit(feature_bank.write)(
    bank, np.array([3]), np.array([-1], np.int32)
  )
  assert bank[3] == -1
  flags = labels % 3 == 0
  read = jax.jit(lambda bank, rows: ~feature_bank.read(bank, rows))
  found = read(on(mesh, flags), np.array([3, 60, 61]))
  # ~ of integers would give other values.
  assert found.tolist() == [False, False, True]


@pytest.mark.parametrize(
  "call",
  [
    lambda: feature_bank.nearest(QUERIES[:, :4], BANK, 3),
    lambda: feature_bank.nearest(QUERIES[0], BANK, 3),
    lambda: feature_bank.nearest(QUERIES, BANK, 3, own=np.arange(5)),
    lambda: feature_bank.nearest(QUERIES, BANK, 3, valid=np.ones(63, bool)),
    lambda: feature_bank.read(BANK, np.ones(3, np.float32)),
    lambda: feature_bank.write(BANK, np.arange(5), QUERIES),
    lambda: feature_bank.write(BANK, np.arange(6), QUERIES[:, :4]),
    lambda: feature_bank.write(BANK, np.arange(6)[:, None], QUERIES),
    lambda: feature_bank.write(BANK, np.ones(6, bool), QUERIES),
  ],
)
def test_shapes_that_do_not_meet_are_refused(call):
  with pytest.raises(AssertionError):
    call()
