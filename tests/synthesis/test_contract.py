"""The contract of a synthesizer, in one suite for all methods."""

import dataclasses
import functools
import typing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import contracts, methods
from dfkt_jax.contracts import Batch, Bounds, Context, Synthesizer
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.network import placement
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.noise import Noise
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD
from tests.networks import tiny

KEY = jax.random.key(7)
STEPS, COMPARED_STEPS = 20, 5
# The half-size stage of the preset with two sizes has 40 steps.
RECIPE = Recipe(synthesis_steps=60)
# Every term of a loss is on.
INVERSION = DeepInversion(
  synthesis_batch_size=32,
  bn_weight=1.0,
  tv_weight=1e-3,
  l2_weight=0.01,
  competition_weight=2.0,
  image_lr=0.1,
  jitter=1,
  image_flip=True,
)
FITTING = TargetFitting(
  image_lr=0.05,
  target_temperature=4.0,
  activation_weight=0.05,
  tv_weight=0.001,
  sum_weight=0.001,
  jitter=1,
)
METHODS: dict[str, Any] = {
  "deep-inversion": INVERSION,
  "deep-inversion, two sizes": dataclasses.replace(
    INVERSION, image_schedule="cosine", clip=True, half_size_share=2 / 3
  ),
  "dfq": DFQ(
    synthesis_batch_size=32,
    latent=8,
    generator_widths=(8, 8, 4),
    generator_lr=3e-3,
  ),
  "noise": Noise(synthesis_batch_size=32),
  "soft-target": SoftTarget(
    synthesis_batch_size=32, sigma=4.0, fitting=FITTING
  ),
  "zskd": ZSKD(
    synthesis_batch_size=32,
    fitting=dataclasses.replace(FITTING, pixels="rescale", jitter=0),
  ),
}
GENERATIVE = ["dfq", "noise"]  # they sample new images without a class
PIXELS = [name for name in METHODS if name not in GENERATIVE]
# Largest difference of an image after five steps on one device and on eight.
TOLERANCE = {"dfq": 2e-3}


class Run(NamedTuple):
  begun: Any  # the state of `init`
  state: Any  # after all steps
  infos: Any  # every field f32[steps]
  batch: Batch  # 16 images after COMPARED_STEPS steps
  images: Any  # the pixels then, or else the images of the batch
  programs: int  # compiled for the steps
  parts: list[int]  # devices over which each array of images is sharded


@functools.cache
def networks():
  return tiny(), tiny(1)


def contexts():
  teacher, student = networks()
  return Context(teacher=teacher, student=student, recipe=RECIPE)


@functools.cache
def programs(name):
  method = METHODS[name]
  sample = jax.jit(method.sample, static_argnums=2)
  return jax.jit(method.init), jax.jit(method.step), sample


@functools.cache
def run(name, devices=1):
  """Run 20 steps on one device, or the first five on several."""
  init, step, sample = programs(name)
  before = step._cache_size()
  mesh = make_mesh(devices)
  infos, parts, batch, images = [], [], None, None
  with jax.set_mesh(mesh):
    teacher, student = placement.put(networks(), mesh)
    context = Context(teacher=teacher, student=student, recipe=RECIPE)
    begun = state = init(KEY, context)
    for index in range(STEPS if devices == 1 else COMPARED_STEPS):
      context = context._replace(
        progress=jnp.float32(index / STEPS), step=jnp.int32(index)
      )
      state, info = step(jax.random.fold_in(KEY, index), state, context)
      infos.append(info)
      if index == COMPARED_STEPS - 1:
        batch = sample(KEY, state, 16)
        images = images_of(name, state, batch)
        made = batch if name in GENERATIVE else state
        rows = [leaf for leaf in jax.tree.leaves(made) if leaf.ndim]
        parts = [
          1 if leaf.is_fully_replicated else len(leaf.sharding.device_set)
          for leaf in rows
        ]
  assert batch is not None
  infos = jax.tree.map(lambda *leaves: np.stack(leaves), *infos)
  count = step._cache_size() - before
  return Run(begun, state, infos, batch, images, count, parts)


def images_of(name, state, batch):
  return state.images if name in PIXELS else batch.images


def numbers(kind):
  """Yield the fields of a dataclass, and of those inside it, with numbers."""
  hints = typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    hint, value = hints[field.name], getattr(kind(), field.name)
    if dataclasses.is_dataclass(value):
      yield from numbers(type(value))
    for number in value if isinstance(value, tuple) else [value]:
      if isinstance(number, int | float) and not isinstance(number, bool):
        yield f"{kind.__name__}.{field.name}", hint, number


def test_the_suite_has_every_synthesizer():
  names = {name.partition(",")[0] for name in METHODS}
  assert names == set(methods.SYNTHESIZERS)
  for name, method in METHODS.items():
    entry = methods.SYNTHESIZERS[name.partition(",")[0]]
    assert entry.load() is type(method)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parts_of_the_contract(name):
  method = METHODS[name]
  assert isinstance(method, Synthesizer)
  assert isinstance(method, contracts.HasBatchSize)
  assert isinstance(method.recipe, Recipe)
  assert isinstance(method.learner, contracts.Learner)
  assert isinstance(hash(method), int)
  assert not isinstance(method, contracts.Restarts)
  steps = contracts.step_functions(method, 60)
  assert sum(count for _, count in steps) == 60


@pytest.mark.parametrize("name", METHODS)
def test_every_number_has_bounds_that_its_default_keeps(name):
  found = list(numbers(type(METHODS[name])))
  assert found
  for field, hint, number in found:
    extras = getattr(hint, "__metadata__", ())
    bounds = [extra for extra in extras if isinstance(extra, Bounds)]
    assert len(bounds) == 1, field
    assert bounds[0].holds(number), field


@pytest.mark.parametrize("name", METHODS)
def test_a_step_keeps_the_structure_of_the_state(name):
  init, step, _ = programs(name)
  state = jax.eval_shape(init, KEY, contexts())
  after, info = jax.eval_shape(step, KEY, state, contexts())
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after)):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
  assert set(info._fields) == set(info._asdict())
  for term in info:
    assert (term.shape, term.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("name", METHODS)
def test_no_two_arrays_of_a_state_share_a_buffer(name):
  # Such a state could not be donated.
  leaves = jax.tree.leaves(METHODS[name].init(KEY, contexts()))
  buffers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
  assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize("name", METHODS)
def test_every_term_is_finite_and_on(name):
  result = run(name)
  for term, values in result.infos._asdict().items():
    assert np.isfinite(values).all(), term
    assert (values != 0).any(), term
  for leaf in jax.tree.leaves(result.state):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "noise"])
def test_steps_decrease_the_loss(name):
  loss = run(name).infos.loss
  assert loss[-1] < loss[0]


@pytest.mark.parametrize("name", METHODS)
def test_all_steps_are_one_program(name):
  assert run(name).programs == 1
  assert run(name, 8).programs == 1


@pytest.mark.parametrize("name", METHODS)
def test_one_device_equals_eight(name):
  one, eight = run(name), run(name, 8)
  atol = TOLERANCE.get(name, 1e-4)
  np.testing.assert_allclose(one.images, eight.images, atol=atol)
  np.testing.assert_allclose(one.batch.images, eight.batch.images, atol=atol)
  np.testing.assert_array_equal(one.batch.labels, eight.batch.labels)
  assert set(one.parts) == {1}
  # Images and labels are sharded, and so are the moments of pixels.
  assert set(eight.parts) == {8}
  assert len(eight.parts) >= (4 if name in PIXELS else 2)


@pytest.mark.parametrize("name", METHODS)
def test_images_are_in_range_and_labels_are_classes(name):
  state = run(name).state
  batch = METHODS[name].sample(KEY, state, 6)
  assert batch.images.shape == (6, 8, 8, 1)
  assert batch.images.dtype == jnp.float32
  assert batch.images.min() >= 0
  assert batch.images.max() <= 1
  assert batch.labels.dtype == jnp.int32
  if name in GENERATIVE:
    assert (batch.labels == -1).all()
    assert batch.soft_labels is None
  else:
    assert batch.labels.min() >= 0
    assert batch.labels.max() < 10


@pytest.mark.parametrize("name", METHODS)
def test_two_keys_draw_two_samples_and_one_key_the_same(name):
  _, _, sample = programs(name)
  state = run(name).state
  one, other, again = (sample(jax.random.key(k), state, 16) for k in (1, 2, 1))
  assert not np.allclose(one.images, other.images)
  jax.tree.map(np.testing.assert_array_equal, one, again)


@pytest.mark.parametrize("name", PIXELS)
def test_a_part_of_the_images_keeps_their_labels(name):
  state = run(name).state
  whole, more = (METHODS[name].sample(KEY, state, n) for n in (32, 40))
  jax.tree.map(np.testing.assert_array_equal, whole, more)
  part = METHODS[name].sample(KEY, state, 5)
  assert len(part.images) == 5
  for index, image in enumerate(part.images):
    (row,) = np.flatnonzero(
      (np.asarray(whole.images) == np.asarray(image)).all((1, 2, 3))
    )
    for some, every in zip(jax.tree.leaves(part), jax.tree.leaves(whole)):
      np.testing.assert_array_equal(some[index], every[row])


@pytest.mark.parametrize("name", PIXELS)
def test_two_keys_begin_two_batches_and_one_key_the_same(name):
  init, _, _ = programs(name)
  one, other, again = (init(jax.random.key(k), contexts()) for k in (1, 2, 1))
  assert not np.allclose(one.images, other.images)
  jax.tree.map(np.testing.assert_array_equal, one, again)


@pytest.mark.parametrize("name", METHODS)
def test_no_random_key_is_used_twice(name):
  method, context = METHODS[name], contexts()
  # The keys that drew the networks are not part of the check.
  with jax.debug_key_reuse(True):
    keys = [jax.random.key(seed) for seed in range(3)]
    state = jax.jit(method.init)(keys[0], context)
    state, info = jax.jit(method.step)(keys[1], state, context)
    batch = jax.jit(method.sample, static_argnums=2)(keys[2], state, 6)
  assert np.isfinite(batch.images).all()
  assert all(np.isfinite(term) for term in info)


@pytest.mark.parametrize("name", METHODS)
def test_vmap_over_seeds_equals_one_at_a_time(name):
  method, context = METHODS[name], contexts()
  over_seeds = lambda function: jax.jit(jax.vmap(function, (0, 0, None)))
  ours = (
    jax.jit(jax.vmap(method.init, (0, None))),
    over_seeds(method.step),
    over_seeds(lambda key, state, count: method.sample(key, state, 6)),
  )
  seeds = jax.vmap(jax.random.key)(jnp.arange(3))

  def two_steps(programs, keys, fold):
    init, step, sample = programs
    state = init(keys, context)
    for index in range(2):
      state, info = step(fold(keys, index), state, context)
    return images_of(name, state, sample(keys, state, 6)), info

  fold_each = jax.vmap(jax.random.fold_in, (0, None))
  images, infos = two_steps(ours, seeds, fold_each)
  own_images, own_info = two_steps(
    programs(name), jax.random.key(1), jax.random.fold_in
  )
  np.testing.assert_allclose(images[1], own_images, atol=1e-4)
  for together, alone in zip(infos, own_info):
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)
