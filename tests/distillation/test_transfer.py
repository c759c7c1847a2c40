"""The round: rolled equals unrolled, one device equals eight, pool or fresh."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dfkt_jax import parallel, placement
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.loops import Loops
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from tests.networks import tiny

KEY = jax.random.key(11)


class Count(NamedTuple):
  count: jax.Array


METHODS = {
  "fresh": (
    DFQ(synthesis_batch_size=16, latent=4, generator_widths=(4, 4, 4)),
    Transfer(kd=KD(steps=9, lr=0.05), batch_size=16, student_steps=3),
  ),
  "pool": (
    DeepInversion(synthesis_batch_size=16),
    Transfer(
      kd=KD(steps=6, lr=0.05, temperature=4.0, crop_padding=1, flip=True),
      batch_size=24,
      synthesis_steps=4,
      student_steps=3,
      pool_size=48,
    ),
  ),
}


def run(name, rounds, rolled=False, devices=1, warmup=0, state=None, first=0):
  method, recipe = METHODS[name]
  recipe = dataclasses.replace(recipe, warmup_rounds=warmup)
  mesh = parallel.make_mesh(devices)
  with jax.set_mesh(mesh):
    teacher, student = placement.place((tiny(), tiny(1)), mesh)
    if state is None:
      init = lambda teacher, student: transfers.init(
        KEY, method, recipe, teacher, student
      )
      state = jax.jit(init)(teacher, student)
    loops = Loops(rolled)
    step = {
      learn: transfers.make_round(method, recipe, loops, learn)
      for learn in (False, True)
    }
    infos = []
    for index in range(first, rounds):
      state, info = step[index >= warmup](state, index, KEY, teacher)
      infos.append(jax.device_get(info))
  return state, infos


def arrays(state):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_close(one, other, atol):
  for a, b in zip(arrays(one), arrays(other), strict=True):
    # Eight-bit pixels may fall to either side.
    slack = 1 if a.dtype == np.uint8 else atol
    np.testing.assert_allclose(
      a.astype(np.float32), b.astype(np.float32), atol=slack, rtol=1e-3
    )


@pytest.mark.parametrize("name", METHODS)
def test_one_program_equals_a_program_a_step(name):
  one, infos = run(name, 2, rolled=True)
  other, their_infos = run(name, 2, rolled=False)
  assert_close(one, other, atol=3e-3)
  for a, b in zip(jax.tree.leaves(infos), jax.tree.leaves(their_infos)):
    np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_one_device_equals_eight(name):
  one, _ = run(name, 1)
  eight, _ = run(name, 1, devices=8)
  assert_close(one, eight, atol=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_stopping_between_rounds_changes_nothing(name):
  whole, _ = run(name, 3)
  half, _ = run(name, 2)
  resumed, _ = run(name, 3, state=half, first=2)
  for a, b in zip(arrays(whole), arrays(resumed), strict=True):
    np.testing.assert_array_equal(a, b)


def test_infos_have_a_value_a_step():
  _, infos = run("pool", 1)
  assert infos[0]["synthesis"].loss.shape == (4,)
  assert infos[0]["distillation"].distance.shape == (3,)


def test_the_pool_grows_by_a_batch_a_round_and_labels_stay():
  state, _ = run("pool", 2)
  assert state.pool.pushed == 32
  labels = np.asarray(state.pool.labels)
  assert (labels >= 0).sum() == 32
  counts = np.bincount(labels[labels >= 0], minlength=10)
  assert counts.min() >= 2


def test_pixels_begin_anew_each_round_and_a_generator_goes_on():
  state, _ = run("pool", 1)
  assert np.isinf(state.synthesis.best_loss)
  assert state.synthesis.opt_state[0].count == 0
  state, _ = run("fresh", 2)
  assert state.synthesis.opt_state[0].count == 2


def test_a_round_goes_through_all_stages_of_a_batch(monkeypatch):
  method = dataclasses.replace(
    METHODS["pool"][0], half_size_share=0.5, image_schedule="cosine"
  )
  monkeypatch.setitem(METHODS, "pool", (method, METHODS["pool"][1]))
  one, infos = run("pool", 2, rolled=True)
  other, their_infos = run("pool", 2, rolled=False)
  assert_close(one, other, atol=3e-3)
  for a, b in zip(infos, their_infos):
    a, b = a["synthesis"], b["synthesis"]
    assert a.loss.shape == (4,)
    np.testing.assert_allclose(a.loss, b.loss, rtol=2e-2)
    # A quarter of the pixels, and of the differences between them.
    assert a.l2[1] < 0.7 * a.l2[2]


def test_warm_up_leaves_the_student_alone():
  state, infos = run("fresh", 2, warmup=2)
  assert "distillation" not in infos[0]
  expected = arrays(tiny(1))
  for a, b in zip(arrays(state.learner.student), expected, strict=True):
    np.testing.assert_array_equal(a, b)
  recipe = dataclasses.replace(METHODS["fresh"][1], warmup_rounds=2)
  assert recipe.rounds(METHODS["fresh"][0]) == 2 + 3


def test_offline_fills_the_pool_and_then_only_learns():
  fitting = TargetFitting(target_temperature=4.0)
  method = SoftTarget(synthesis_batch_size=16, fitting=fitting)
  recipe = dataclasses.replace(
    METHODS["pool"][1], pool_size=40, offline=True, kd=KD(steps=6, lr=0.05)
  )
  assert recipe.warmup(method) == 3
  assert recipe.rounds(method) == 3 + 2
  teacher, student = tiny(), tiny(1)
  state = transfers.init(KEY, method, recipe, teacher, student)
  fill = transfers.make_round(method, recipe, Loops(False), learn=False)
  learn = transfers.make_round(method, recipe, Loops(False), synthesise=False)
  for index in range(3):
    state, infos = fill(state, index, KEY, teacher)
    assert set(infos) == {"synthesis"}
  pool = jax.device_get(state.pool)
  assert pool.pushed == 48
  images = pool.images.reshape(-1, *pool.images.shape[2:])
  assert len(np.unique(images, axis=0)) == 40 == pool.capacity
  state, infos = learn(state, 3, KEY, teacher)
  assert set(infos) == {"distillation"}
  np.testing.assert_array_equal(state.pool.images, pool.images)


def test_the_student_comes_closer_to_the_teacher():
  _, infos = run("fresh", 3)
  first, last = infos[0]["distillation"], infos[-1]["distillation"]
  assert last.distance[-1] < first.distance[0]


@pytest.mark.parametrize("name", METHODS)
def test_no_recompilation_after_the_first_round(name):
  method, recipe = METHODS[name]
  mesh = parallel.make_mesh(8)
  with jax.set_mesh(mesh):
    networks = placement.place((tiny(), tiny(1)), mesh)
    init = lambda *networks: transfers.init(KEY, method, recipe, *networks)
    state = jax.jit(init)(*networks)
    step = transfers.make_round(method, recipe, Loops(rolled=True))
    for index in range(3):
      state, _ = step(state, index, KEY, networks[0])
  assert step._cache_size() == 1
  if state.pool is not None:
    assert not state.pool.words.is_fully_replicated
    assert not state.synthesis.best_images.is_fully_replicated


def test_preview_shows_what_the_student_learns_from():
  for name, (method, _) in METHODS.items():
    state, _ = run(name, 1)
    batch = transfers.preview(KEY, method, state, 8)
    assert batch.images.shape == (8, 8, 8, 1)
    if name == "pool":
      np.testing.assert_array_equal(batch.labels, state.pool.labels[8:16, 0])


def test_a_method_of_ones_own_needs_three_functions():
  class Grey:
    def init(self, key, teacher, student):
      return jax.numpy.zeros(())

    def step(self, key, state, teacher, student):
      return state + 1, Count(state)

    def sample(self, key, state, batch_size):
      images = jax.random.uniform(key, (batch_size, 8, 8, 1))
      return transfers.Batch(images, jax.numpy.full(batch_size, 3))

  recipe = dataclasses.replace(METHODS["pool"][1], synthesis_steps=2)
  teacher = tiny()
  state = transfers.init(KEY, Grey(), recipe, teacher, tiny(1))
  step = transfers.make_round(Grey(), recipe, Loops(rolled=True))
  state, infos = step(state, 0, KEY, teacher)
  assert infos["synthesis"].count.tolist() == [0, 1]
  assert state.pool.pushed == recipe.batch_size
