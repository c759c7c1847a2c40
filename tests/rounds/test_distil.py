"""The round: rolled equals unrolled, one device equals eight, any source."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.contracts import Batch
from dfkt_jax.data.stream import put
from dfkt_jax.devices.loops import Loops
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.network import placement
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.random_selection import RandomSelection
from dfkt_jax.rounds import distil
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from tests.networks import tiny

KEY = jax.random.key(11)
PIXELS = np.random.default_rng(0).integers(
  0, 256, (8, 4, 16, 8, 8, 1), dtype=np.uint8
)


class Count(NamedTuple):
  count: jax.Array


GENERATOR = DFQ(synthesis_batch_size=16, latent=4, generator_widths=(4, 4, 4))
FRESH = Recipe(steps=9, batch_size=16, student_steps=3)
STORED = Recipe(
  steps=6, batch_size=24, synthesis_steps=4, student_steps=3, memory_size=48
)
BATCHES = Recipe(steps=12, batch_size=16, student_steps=3)
AUGMENTED = KD(lr=0.05, temperature=4.0, crop_padding=1, flip=True)
POOLED = KD(lr=0.02, temperature=2.0, crop_padding=1, flip=True)
MOSAIC = MosaicKD(
  latent=4, generator_widths=(4, 4, 4), discriminator_widths=(4, 8)
)
# Sources with learners: the papers' own pairs, and any other.
METHODS = {
  "fresh": (GENERATOR, KD(lr=0.05), FRESH),
  "memory": (DeepInversion(synthesis_batch_size=16), AUGMENTED, STORED),
  "pool": (RandomSelection(), POOLED, BATCHES),
  "pool, dfnd": (RandomSelection(), NoiseAdaptation(POOLED), BATCHES),
  "pool, odsd": (RandomSelection(), ContrastiveRelations(POOLED), BATCHES),
  "pool, generator": (MOSAIC, POOLED, BATCHES),
  "fresh, odsd": (GENERATOR, ContrastiveRelations(KD(lr=0.05)), FRESH),
  "memory, dfnd": (
    DeepInversion(synthesis_batch_size=16),
    NoiseAdaptation(AUGMENTED),
    STORED,
  ),
  "stored, dfnd": (Offline(), NoiseAdaptation(POOLED), BATCHES),
}
SYNTHESIZERS = ("fresh", "memory")


def batches_of(name, index, mesh):
  source, _, recipe = METHODS[name]
  if not distil.has_batches(source):
    return None
  pixels = PIXELS[index][: distil.batches_per_round(source, recipe)]
  labels = None
  if isinstance(source, Offline):
    labels = np.full(pixels.shape[:2], -1, np.int32)
  return put(Batch(pixels, labels), mesh, axis=1)  # type: ignore


def run(name, rounds, rolled=False, devices=1, warmup=0, state=None, first=0):
  source, learner, recipe = METHODS[name]
  recipe = dataclasses.replace(recipe, warmup_rounds=warmup)
  mesh = make_mesh(devices)
  with jax.set_mesh(mesh):
    teacher, student = placement.put((tiny(), tiny(1)), mesh)
    if state is None:
      init = lambda teacher, student: distil.init(
        KEY, source, learner, recipe, teacher, student
      )
      state = jax.jit(init)(teacher, student)
    loops = Loops(rolled)
    step = {
      learn: distil.make_round(source, learner, recipe, loops, learn)
      for learn in (False, True)
    }
    infos = []
    for index in range(first, rounds):
      batches = batches_of(name, index, mesh)
      take = step[index >= warmup]
      state, info = take(state, index, KEY, teacher, None, batches)
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


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_one_program_equals_a_program_a_step(name):
  one, infos = run(name, 2, rolled=True)
  other, their_infos = run(name, 2, rolled=False)
  assert_close(one, other, atol=3e-3)
  for a, b in zip(jax.tree.leaves(infos), jax.tree.leaves(their_infos)):
    np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_one_device_equals_eight(name):
  one, _ = run(name, 1)
  eight, _ = run(name, 1, devices=8)
  assert_close(one, eight, atol=5e-3)


@pytest.mark.parametrize("name", [*SYNTHESIZERS, "pool, odsd"])
def test_stopping_between_rounds_changes_nothing(name):
  whole, _ = run(name, 3)
  half, _ = run(name, 2)
  resumed, _ = run(name, 3, state=half, first=2)
  for a, b in zip(arrays(whole), arrays(resumed), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted({*METHODS} - {*SYNTHESIZERS}))
def test_any_pair_is_the_same_on_eight_devices_and_rolled(name):
  _, one = run(name, 4)
  _, eight = run(name, 1, rolled=True, devices=8)
  for group, info in eight[0].items():
    for term, values in info._asdict().items():
      expected = getattr(one[0][group], term)
      np.testing.assert_allclose(values[0], expected[0], rtol=1e-3, atol=1e-5)
      # Angles between nearly equal features carry the order of sums on.
      np.testing.assert_allclose(values, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_info_is_finite(name):
  _, infos = run(name, 4 if "pool" in name else 2)
  for info in infos:
    for values in jax.tree.leaves(info):
      assert np.isfinite(values).all()


def test_infos_have_a_value_a_step():
  _, infos = run("memory", 1)
  assert infos[0]["synthesis"].loss.shape == (4,)
  assert infos[0]["distillation"].distance.shape == (3,)


def test_the_memory_grows_by_a_batch_a_round_and_labels_stay():
  state, _ = run("memory", 2)
  assert state.memory.pushed == 32
  labels = np.asarray(state.memory.labels)
  assert (labels >= 0).sum() == 32
  counts = np.bincount(labels[labels >= 0], minlength=10)
  assert counts.min() >= 2


def test_pixels_start_again_each_round_and_a_generator_goes_on():
  state, _ = run("memory", 1)
  assert np.isinf(state.synthesis.best_loss)
  assert state.synthesis.opt_state[0].count == 0
  state, _ = run("fresh", 2)
  assert state.synthesis.opt_state[0].count == 2


def test_a_round_goes_through_all_stages_of_a_batch(monkeypatch):
  method = dataclasses.replace(
    METHODS["memory"][0], half_size_share=0.5, image_schedule="cosine"
  )
  monkeypatch.setitem(METHODS, "memory", (method, *METHODS["memory"][1:]))
  one, infos = run("memory", 2, rolled=True)
  other, their_infos = run("memory", 2, rolled=False)
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
  recipe = dataclasses.replace(FRESH, warmup_rounds=2)
  assert distil.all_rounds(GENERATOR, recipe) == 2 + 3


def test_offline_fills_the_memory_and_then_only_learns():
  fitting = TargetFitting(target_temperature=4.0)
  method = SoftTarget(synthesis_batch_size=16, fitting=fitting)
  recipe = dataclasses.replace(STORED, memory_size=40, offline=True)
  learner = KD(lr=0.05)
  assert distil.warmup_rounds(method, recipe) == 3
  assert distil.all_rounds(method, recipe) == 3 + 2
  teacher, student = tiny(), tiny(1)
  state = distil.init(KEY, method, learner, recipe, teacher, student)
  make = lambda **flags: distil.make_round(
    method, learner, recipe, Loops(False), **flags
  )
  fill, learn = make(learn=False), make(synthesize=False)
  for index in range(3):
    state, infos = fill(state, index, KEY, teacher, None, None)
    assert set(infos) == {"synthesis"}
  memory = jax.device_get(state.memory)
  assert memory.pushed == 48
  images = memory.images.reshape(-1, *memory.images.shape[2:])
  assert len(np.unique(images, axis=0)) == 40 == memory.capacity
  state, infos = learn(state, 3, KEY, teacher, None, None)
  assert set(infos) == {"distillation"}
  np.testing.assert_array_equal(state.memory.images, memory.images)


@pytest.mark.parametrize("name", METHODS)
def test_the_student_comes_closer_to_the_teacher(name):
  rounds = {"memory": 2, "memory, dfnd": 2}.get(name, 3)
  _, infos = run(name, rounds + ("pool" in name))
  first, last = infos[0]["distillation"], infos[-1]["distillation"]
  assert last.distance[-1] < first.distance[0]


@pytest.mark.parametrize("name", METHODS)
def test_no_recompilation_after_the_first_round(name):
  source, learner, recipe = METHODS[name]
  mesh = make_mesh(8)
  with jax.set_mesh(mesh):
    networks = placement.put((tiny(), tiny(1)), mesh)
    init = lambda *networks: distil.init(
      KEY, source, learner, recipe, *networks
    )
    state = jax.jit(init)(*networks)
    step = distil.make_round(source, learner, recipe, Loops(rolled=True))
    for index in range(3):
      batches = batches_of(name, index, mesh)
      state, _ = step(state, index, KEY, networks[0], None, batches)
  assert step._cache_size() == 1
  if state.memory is not None:
    assert not state.memory.words.is_fully_replicated
    assert not state.synthesis.best_images.is_fully_replicated


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_preview_shows_what_the_student_learns_from(name):
  state, _ = run(name, 1)
  batch = distil.preview(KEY, METHODS[name][0], state, 8)
  assert batch.images.shape == (8, 8, 8, 1)
  if name == "memory":
    np.testing.assert_array_equal(batch.labels, state.memory.labels[8:16, 0])


def test_a_stored_set_takes_no_step_past_the_last_one():
  learner, recipe = KD(lr=0.1), Recipe(steps=2, batch_size=16, student_steps=4)
  mesh = make_mesh(1)
  teacher, student = placement.put((tiny(), tiny(1)), mesh)
  batches = Batch(PIXELS[0], np.full((4, 16), -1))  # type: ignore
  ends = []
  for student_steps in (2, 4):
    recipe = dataclasses.replace(recipe, student_steps=student_steps)
    state = distil.init(KEY, Offline(), learner, recipe, teacher, student)
    before = arrays(state)
    step = distil.make_round(Offline(), learner, recipe, Loops(False))
    state, _ = step(state, 0, KEY, teacher, None, put(batches, mesh, axis=1))
    ends.append(arrays(state))
    assert any((a != b).any() for a, b in zip(before, ends[-1]))
  for a, b in zip(*ends, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_users_own_method_needs_three_functions():
  class Grey:
    def init(self, key, context):
      return jnp.zeros(())

    def step(self, key, state, context):
      return state + 1, Count(state)

    def sample(self, key, state, count):
      images = jax.random.uniform(key, (count, 8, 8, 1))
      return Batch(images, jnp.full(count, 3))

  recipe = dataclasses.replace(STORED, synthesis_steps=2)
  teacher = tiny()
  state = distil.init(KEY, Grey(), KD(), recipe, teacher, tiny(1))
  step = distil.make_round(Grey(), KD(), recipe, Loops(rolled=True))
  state, infos = step(state, 0, KEY, teacher, None, None)
  assert infos["synthesis"].count.tolist() == [0, 1]
  assert state.memory.pushed == recipe.batch_size


def test_steps_see_their_number_progress_assets_and_the_student():
  seen = []

  class Sees:
    def init(self, key, context):
      assert context.assets["names"].shape == (2,)
      return jnp.zeros(())

    def step(self, key, state, context):
      seen.append(context)
      return state + 1, Count(context.progress)

    def sample(self, key, state, count):
      return Batch(jnp.zeros((count, 8, 8, 1)), jnp.full(count, -1))

  recipe = Recipe(steps=4, batch_size=8, synthesis_steps=2, student_steps=2)
  teacher, assets = tiny(), {"names": jnp.arange(2)}
  state = distil.init(KEY, Sees(), KD(), recipe, teacher, tiny(1), assets)
  step = distil.make_round(Sees(), KD(), recipe, Loops(rolled=True))
  found = []
  for index in range(2):
    state, infos = step(state, index, KEY, teacher, assets, None)
    found += infos["synthesis"].count.tolist()
  assert found == [0.0, 0.25, 0.5, 0.75]
  assert seen[0].student.spec == teacher.spec
  assert seen[0].recipe is recipe
  assert seen[0].learner is not None
