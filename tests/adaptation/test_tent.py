"""TENT's online decisions and its episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax import network as net
from dfkt_jax.adaptation.tent import Tent
from dfkt_jax.contracts import Batch, PredictsOnline
from tests.adaptation.contexts import context, predict
from tests.networks import tiny

KEY = jax.random.key(3)
RECIPE = dataclasses.replace(Tent.recipe, steps=40, batch_size=8, lr=0.02)
PIXELS = np.random.default_rng(0).integers(
  0, 256, (32, 8, 8, 1), dtype=np.uint8
)
IMAGES = jnp.asarray(PIXELS, jnp.float32) / 255


def batch_at(first):
  return Batch(IMAGES[first : first + 8], rows=first + jnp.arange(8))


def begin(method):
  source = tiny()
  return method.init(KEY, context(RECIPE, source, predict(source, IMAGES)))


def test_it_predicts_before_it_updates_and_once():
  method, state = Tent(), begin(Tent())
  assert isinstance(method, PredictsOnline)
  step = jax.jit(method.step)
  batch = batch_at(0)
  expected, _ = net.train_logits(tiny(), batch.images, None)
  state, _ = step(KEY, state, context(RECIPE, tiny(), batch=batch))
  found = method.online_decisions(state)
  np.testing.assert_array_equal(found[:8], expected.argmax(1))
  assert (found[8:] == -1).all()
  noise = batch._replace(images=jax.random.uniform(KEY, batch.images.shape))
  again, _ = step(KEY, state, context(RECIPE, tiny(), batch=noise))
  np.testing.assert_array_equal(method.online_decisions(again), found)


def test_episodes_begin_with_the_source():
  ends = []
  for method in (Tent(episodic=True), Tent()):
    state, step = begin(method), jax.jit(method.step)
    for index in range(3):
      here = context(RECIPE, tiny(), batch=batch_at(8 * index), step=index)
      state, _ = step(KEY, state, here)
    assert state.train.step == 3
    ends.append(method.network(state))
  for a, b in zip(jax.tree.leaves(tiny()), jax.tree.leaves(ends[0])):
    np.testing.assert_array_equal(a, b)
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(tiny()), jax.tree.leaves(ends[1]))
  )
