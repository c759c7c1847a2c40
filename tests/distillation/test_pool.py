import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import parallel
from dfkt_jax.distillation import pool as pools
from dfkt_jax.synthesis.contract import Batch

SHAPE = (2, 2, 1)


def batch(first, count):
  values = jnp.arange(first, first + count)
  images = jnp.broadcast_to(values[:, None, None, None] / 255, (count, *SHAPE))
  return Batch(images, values.astype(jnp.int32))


def held(pool):
  return sorted(set(np.asarray(pool.labels).ravel().tolist()) - {-1})


def test_the_oldest_images_go_first():
  pool = pools.init(8, SHAPE, 4)
  for first in (0, 4, 8):
    pool = pools.push(pool, batch(first, 4))
  assert held(pool) == list(range(4, 12))
  assert pool.pushed == 12
  np.testing.assert_array_equal(pool.images[..., 0, 0, 0], pool.labels)


def test_a_pool_of_no_whole_batches_loses_part_of_the_oldest():
  pool = pools.init(10, SHAPE, 4)
  for first in (0, 4, 8):
    pool = pools.push(pool, batch(first, 4))
  assert held(pool)[2:] == list(range(4, 12))
  assert set(held(pool)[:2]) < set(range(4))
  np.testing.assert_array_equal(pool.images[..., 0, 0, 0], pool.labels)


def test_a_batch_that_is_not_the_pools():
  pool = pools.init(8, SHAPE, 4)
  with pytest.raises(ValueError, match="batch of 3 .* 4 stripes"):
    pools.push(pool, batch(0, 3))


@pytest.mark.parametrize(("capacity", "size"), [(12, 4), (10, 4), (9, 2)])
@pytest.mark.parametrize("pushes", [1, 2, 7])
def test_every_image_that_is_held_is_drawn_and_no_other(capacity, size, pushes):
  pool = pools.init(capacity, SHAPE, size)
  for first in range(0, pushes * size, size):
    pool = pools.push(pool, batch(first, size))
  drawn = pools.draw(jax.random.key(0), pool, 500)
  assert sorted(set(np.asarray(drawn.labels).tolist())) == held(pool)
  assert len(held(pool)) == min(capacity, pushes * size)
  last = set(range((pushes - 1) * size, pushes * size))
  assert set(np.asarray(pools.latest(pool, size).labels).tolist()) == last


def test_draws_come_from_what_is_there_and_keep_labels_with_images():
  pool = pools.push(pools.init(100, SHAPE, 4), batch(3, 4))
  drawn = pools.draw(jax.random.key(0), pool, 64)
  assert set(np.asarray(drawn.labels).tolist()) == {3, 4, 5, 6}
  pixels = np.round(np.asarray(drawn.images[:, 0, 0, 0]) * 255)
  np.testing.assert_array_equal(pixels, drawn.labels)


def test_latest_are_the_last_pushed():
  pool = pools.init(6, SHAPE, 4)
  for first in (0, 4):
    pool = pools.push(pool, batch(first, 4))
  assert set(np.asarray(pools.latest(pool, 3).labels)) <= {4, 5, 6, 7}
  assert len(set(np.asarray(pools.latest(pool, 4).labels))) == 4


def test_rounding_is_to_8_bits():
  pixel = 0.3333
  images = jnp.full((1, *SHAPE), pixel)
  pool = pools.push(pools.init(1, SHAPE, 1), Batch(images, jnp.array([0])))
  drawn = pools.draw(jax.random.key(0), pool, 1).images
  assert np.abs(drawn - pixel).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 3, 3), (3, 3, 1), (1, 1, 1)])
def test_four_channels_are_a_word_and_come_out_as_they_were(shape):
  pixels = jax.random.bits(jax.random.key(0), (6, *shape), jnp.uint8)
  pool = pools.init(6, shape, 6)
  assert pool.words.shape == (6, 1, -(-np.prod(shape) // 4))
  pool = pools.push(pool, Batch(pixels / 255, jnp.arange(6)))
  np.testing.assert_array_equal(pool.images[:, 0], pixels)
  drawn = pools.draw(jax.random.key(1), pool, 20)
  expected = np.asarray(pixels)[np.asarray(drawn.labels)]
  np.testing.assert_array_equal(np.round(drawn.images * 255), expected)


def test_the_pool_is_split_over_devices():
  mesh = parallel.make_mesh(8)
  with jax.set_mesh(mesh):
    pool = jax.jit(lambda: pools.init(16, SHAPE, 8))()
    pool = jax.jit(pools.push, donate_argnums=0)(pool, batch(0, 8))
  assert len(pool.words.sharding.device_set) == 8
  assert not pool.words.is_fully_replicated
  assert held(pool) == list(range(8))


def test_soft_labels_stay_with_their_images():
  images = jnp.arange(6.0).reshape(6, 1, 1, 1) / 255
  soft = jnp.arange(12.0).reshape(6, 2)
  pool = pools.init(4, (1, 1, 1), 3, soft_classes=2)
  for part in (slice(0, 3), slice(3, 6)):
    labels = jnp.zeros(3, jnp.int32)
    pool = pools.push(pool, Batch(images[part], labels, soft[part]))
  batch = pools.draw(jax.random.key(0), pool, 32)
  drawn = np.round(np.asarray(batch.images)[:, 0, 0, 0] * 255)
  assert set(drawn) == {2.0, 3.0, 4.0, 5.0}
  np.testing.assert_array_equal(batch.soft_labels[:, 0], 2 * drawn)
