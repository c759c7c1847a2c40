"""The replay buffer: what it keeps, draws and rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.contracts import Batch
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.errors import UsageError
from dfkt_jax.memory import replay_buffer

SHAPE = (2, 2, 1)


def batch(first, count):
  values = jnp.arange(first, first + count)
  images = jnp.broadcast_to(values[:, None, None, None] / 255, (count, *SHAPE))
  return Batch(images, values.astype(jnp.int32))


def held(buffer):
  return sorted(set(np.asarray(buffer.labels).ravel().tolist()) - {-1})


def test_the_oldest_images_go_first():
  buffer = replay_buffer.init(8, SHAPE, 4)
  for first in (0, 4, 8):
    buffer = replay_buffer.push(buffer, batch(first, 4))
  assert held(buffer) == list(range(4, 12))
  assert buffer.pushed == 12
  np.testing.assert_array_equal(buffer.images[..., 0, 0, 0], buffer.labels)


def test_a_buffer_of_no_whole_batches_loses_part_of_the_oldest():
  buffer = replay_buffer.init(10, SHAPE, 4)
  for first in (0, 4, 8):
    buffer = replay_buffer.push(buffer, batch(first, 4))
  assert held(buffer)[2:] == list(range(4, 12))
  assert set(held(buffer)[:2]) < set(range(4))
  np.testing.assert_array_equal(buffer.images[..., 0, 0, 0], buffer.labels)


def test_a_batch_that_is_not_the_buffers():
  buffer = replay_buffer.init(8, SHAPE, 4)
  with pytest.raises(UsageError, match="`sample` .* 3 images .* of 4: let"):
    replay_buffer.push(buffer, batch(0, 3))


@pytest.mark.parametrize(("capacity", "size"), [(12, 4), (10, 4), (9, 2)])
@pytest.mark.parametrize("pushes", [1, 2, 7])
def test_every_image_that_is_held_is_drawn_and_no_other(capacity, size, pushes):
  buffer = replay_buffer.init(capacity, SHAPE, size)
  for first in range(0, pushes * size, size):
    buffer = replay_buffer.push(buffer, batch(first, size))
  drawn = replay_buffer.draw(jax.random.key(0), buffer, 500)
  assert sorted(set(np.asarray(drawn.labels).tolist())) == held(buffer)
  assert len(held(buffer)) == min(capacity, pushes * size)
  last = set(range((pushes - 1) * size, pushes * size))
  assert (
    set(np.asarray(replay_buffer.latest(buffer, size).labels).tolist()) == last
  )


def test_draws_come_from_what_is_there_and_keep_labels_with_images():
  buffer = replay_buffer.push(replay_buffer.init(100, SHAPE, 4), batch(3, 4))
  drawn = replay_buffer.draw(jax.random.key(0), buffer, 64)
  assert set(np.asarray(drawn.labels).tolist()) == {3, 4, 5, 6}
  pixels = np.round(np.asarray(drawn.images[:, 0, 0, 0]) * 255)
  np.testing.assert_array_equal(pixels, drawn.labels)


def test_latest_are_the_last_pushed():
  buffer = replay_buffer.init(6, SHAPE, 4)
  for first in (0, 4):
    buffer = replay_buffer.push(buffer, batch(first, 4))
  assert set(np.asarray(replay_buffer.latest(buffer, 3).labels)) <= {4, 5, 6, 7}
  assert len(set(np.asarray(replay_buffer.latest(buffer, 4).labels))) == 4


def test_rounding_is_to_8_bits():
  pixel = 0.3333
  images = jnp.full((1, *SHAPE), pixel)
  buffer = replay_buffer.push(
    replay_buffer.init(1, SHAPE, 1), Batch(images, jnp.array([0]))
  )
  drawn = replay_buffer.draw(jax.random.key(0), buffer, 1).images
  assert np.abs(drawn - pixel).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 3, 3), (3, 3, 1), (1, 1, 1)])
def test_four_channels_are_a_word_and_come_out_as_they_were(shape):
  pixels = jax.random.bits(jax.random.key(0), (6, *shape), jnp.uint8)
  buffer = replay_buffer.init(6, shape, 6)
  assert buffer.words.shape == (6, 1, -(-np.prod(shape) // 4))
  buffer = replay_buffer.push(buffer, Batch(pixels / 255, jnp.arange(6)))
  np.testing.assert_array_equal(buffer.images[:, 0], pixels)
  drawn = replay_buffer.draw(jax.random.key(1), buffer, 20)
  expected = np.asarray(pixels)[np.asarray(drawn.labels)]
  np.testing.assert_array_equal(np.round(drawn.images * 255), expected)


def test_the_buffer_is_sharded_over_devices():
  mesh = make_mesh(8)
  with jax.set_mesh(mesh):
    buffer = jax.jit(lambda: replay_buffer.init(16, SHAPE, 8))()
    buffer = jax.jit(replay_buffer.push, donate_argnums=0)(buffer, batch(0, 8))
  assert len(buffer.words.sharding.device_set) == 8
  assert not buffer.words.is_fully_replicated
  assert held(buffer) == list(range(8))


def test_soft_labels_stay_with_their_images():
  images = jnp.arange(6.0).reshape(6, 1, 1, 1) / 255
  soft = jnp.arange(12.0).reshape(6, 2)
  buffer = replay_buffer.init(4, (1, 1, 1), 3, soft_classes=2)
  for part in (slice(0, 3), slice(3, 6)):
    labels = jnp.zeros(3, jnp.int32)
    buffer = replay_buffer.push(buffer, Batch(images[part], labels, soft[part]))
  batch = replay_buffer.draw(jax.random.key(0), buffer, 32)
  drawn = np.round(np.asarray(batch.images)[:, 0, 0, 0] * 255)
  assert set(drawn) == {2.0, 3.0, 4.0, 5.0}
  np.testing.assert_array_equal(batch.soft_labels[:, 0], 2 * drawn)


def test_a_batch_without_labels_is_stored_as_unlabelled():
  images = jnp.zeros((4, *SHAPE))
  buffer = replay_buffer.push(replay_buffer.init(4, SHAPE, 4), Batch(images))
  np.testing.assert_array_equal(buffer.labels, -1)


def test_rows_and_weights_are_not_stored():
  whole = batch(0, 4)._replace(rows=jnp.arange(4), weights=jnp.ones(4))
  buffer = replay_buffer.push(replay_buffer.init(4, SHAPE, 4), whole)
  drawn = replay_buffer.draw(jax.random.key(0), buffer, 4)
  assert drawn.rows is None
  assert drawn.weights is None


def test_images_of_another_shape_are_refused():
  buffer = replay_buffer.init(4, SHAPE, 4)
  with pytest.raises(AssertionError):
    replay_buffer.push(buffer, Batch(jnp.zeros((4, 2, 1, 1))))
