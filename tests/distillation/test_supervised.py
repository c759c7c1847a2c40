import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.distillation import optimizers
from dfkt_jax.distillation.supervised import SFDA, Supervised, _batch_index
from tests.networks import spec, tiny

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


def test_the_sfda_recipe_moves_the_backbone_a_tenth_as_fast():
  module = models.build("convnet-half+bottleneck", 10)
  network = net.init(KEY, module, spec())
  images = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)), jnp.uint8
  )
  labels = jnp.arange(8, dtype=jnp.int32)
  moved = {}
  for rate in (1.0, 0.1):
    recipe = dataclasses.replace(SFDA, steps=10, backbone_rate=rate)
    state, _ = jax.jit(recipe.step)(
      KEY, recipe.init(network), 0, images, labels
    )
    moved[rate] = jax.tree.map(
      lambda new, old: np.asarray(new - old),
      state.network.params,
      network.params,
    )
  pair = lambda *path: [moved[r][path[0]][path[1]] for r in (1.0, 0.1)]
  full, tenth = pair("conv1", "kernel")
  np.testing.assert_allclose(tenth, 0.1 * full, rtol=1e-2, atol=1e-7)
  for name in ("bottleneck", "classifier"):
    full, same = pair(name, "kernel")
    np.testing.assert_allclose(same, full, rtol=1e-3, atol=1e-7)


def test_schedules_by_hand():
  rate = lambda name, step: float(
    optimizers.learning_rate(0.1, 100, name)(jnp.int32(step))
  )
  assert rate("poly", 0) == pytest.approx(0.1)
  assert rate("poly", 30) == pytest.approx(0.1 * 4.0**-0.75)
  assert rate("cosine", 50) == pytest.approx(0.05)
  assert rate("constant", 99) == pytest.approx(0.1)


def test_nesterov_looks_ahead():
  plain = optimizers.make("sgd", 1.0, 10, 0.9, 0.0, "constant")
  ahead = optimizers.make("sgd", 1.0, 10, 0.9, 0.0, "constant", True)
  first = lambda optimizer: optimizer.update(
    jnp.ones(1), optimizer.init(jnp.zeros(1)), jnp.zeros(1)
  )[0]
  assert first(plain)[0] == pytest.approx(-1.0)
  assert first(ahead)[0] == pytest.approx(-1.9)
