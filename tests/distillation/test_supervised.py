import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.distillation.supervised import Supervised, _batch_index
from tests.networks import tiny

KEY = jax.random.key(2)


def test_an_epoch_visits_every_image_once():
  seen = np.concatenate(
    [_batch_index(KEY, jnp.int32(step), 24, 8) for step in range(3)]
  )
  assert sorted(seen.tolist()) == list(range(24))
  again = np.concatenate(
    [_batch_index(KEY, jnp.int32(step), 24, 8) for step in range(3, 6)]
  )
  assert sorted(again.tolist()) == list(range(24))
  assert seen.tolist() != again.tolist()


def test_what_does_not_fill_a_batch_is_dropped():
  seen = np.concatenate(
    [_batch_index(KEY, jnp.int32(step), 26, 8) for step in range(3)]
  )
  assert len(set(seen.tolist())) == 24


def test_it_learns_labels():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 64).astype(np.int32)
  # The class is the brightness of the image.
  images = np.broadcast_to(labels[:, None, None, None] * 25, (64, 8, 8, 1))
  images = jnp.asarray(images, jnp.uint8)
  recipe = Supervised(
    steps=80, batch_size=32, lr=0.05, crop_padding=0, flip=False
  )
  state, step = recipe.init(tiny(1)), jax.jit(recipe.step)
  losses = []
  for index in range(80):
    batch = recipe.batch(KEY, index, images, jnp.asarray(labels))
    state, info = step(KEY, state, index, *batch)
    losses.append(float(info.cross_entropy))
  assert losses[-1] < 0.5 * losses[0]


def test_label_smoothing_raises_the_floor():
  recipe = Supervised(steps=1, batch_size=8, label_smoothing=0.1)
  plain = Supervised(steps=1, batch_size=8)
  images = jnp.zeros((8, 8, 8, 1), jnp.uint8)
  labels = jnp.zeros(8, jnp.int32)
  loss = lambda r: jax.jit(r.step)(KEY, r.init(tiny()), 0, images, labels)[1]
  assert loss(recipe).cross_entropy != loss(plain).cross_entropy
