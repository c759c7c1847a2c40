"""The contract of every adapter, parameterized over all of them."""

import dataclasses
import functools
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.adaptation.ada_contrast import AdaContrast
from dfkt_jax.adaptation.cowa import CoWA
from dfkt_jax.adaptation.cpga import CPGA
from dfkt_jax.adaptation.gan_3c import GAN3C
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.adaptation.sfda_de import SFDADE
from dfkt_jax.adaptation.sfit import SFIT
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus
from dfkt_jax.contracts import Adapter, Batch, Bounds, Relabels
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.devices.sharding import shard
from dfkt_jax.methods import ADAPTERS
from dfkt_jax.network import placement
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.networks import tiny

KEY = jax.random.key(3)
INIT, RELABEL, STEP = range(3)  # streams of keys
PIXELS = np.random.default_rng(0).integers(
  0, 256, (32, 8, 8, 1), dtype=np.uint8
)
METHODS = {name: entry.load()() for name, entry in ADAPTERS.items()}
# These defaults are too large for small networks, or for few steps.
METHODS["3c-gan"] = GAN3C(
  latent=8, generator_widths=(8, 8), discriminator_widths=(4,)
)
METHODS["ada-contrast"] = AdaContrast(queue_size=32, neighbours=3)
METHODS["cowa"] = CoWA(epsilon=1e-2)
METHODS["cpga"] = CPGA(
  generator_steps=5, generator_batch_size=16, generator_width=8, latent=4
)
METHODS["sfda-de"] = SFDADE(minimum_images=1, norm_rate=1.0)
METHODS["sfit"] = SFIT(translator_width=4, translator_blocks=1)
METHODS["shot++"] = SHOTPlusPlus(
  head_share=0.1, transfer_share=0.8, unlabelled_weight=1.0
)
# The first step of a run, where a stage before it leaves the network as it is.
FIRST_STEP = {"shot++": 8}

# Loss terms of non-zero weight, in a run or in the first steps of its stages.
TERMS = {
  "3c-gan": (
    *("cross_entropy", "distance", "entropy", "smoothness"),
    *("generator", "realism", "discriminator"),
  ),
  "aad": ("attraction", "dispersion"),
  "ada-bn": (),
  "ada-contrast": ("cross_entropy", "contrast", "marginal_entropy"),
  "cowa": ("cross_entropy",),
  "cpga": ("contrast", "early_learning", "neighbourhood"),
  "dine": {
    0: ("distillation", "information", "mixup"),
    30: ("information",),
  },
  "notela": (),
  "nrc": ("neighbours", "expanded", "marginal_entropy"),
  "sfda-de": (
    *("features_within", "features_between"),
    *("predictions_within", "predictions_between"),
  ),
  "sfit": {
    0: ("entropy", "marginal_entropy"),
    12: ("divergence", "identity", "content"),
    16: ("divergence", "relation", "identity", "variation"),
    28: ("entropy", "marginal_entropy"),
  },
  "shot": ("cross_entropy", "entropy", "marginal_entropy"),
  "shot++": {
    0: ("rotation",),
    4: ("cross_entropy", "entropy", "marginal_entropy", "rotation"),
    9: ("cross_entropy", "unlabelled"),
  },
  "tent": ("entropy",),
}
# Other fields of an Info: figures, and terms whose default weight is 0.
FIGURES = {
  "3c-gan": {"marginal_entropy"},
  "aad": {"weight"},
  "ada-bn": {"drift"},
  "ada-contrast": {"overruled"},
  "cowa": {"weight"},
  "cpga": {"sure"},
  "dine": {"tuning"},
  "notela": {"teacher_entropy", "moved"},
  "nrc": {"reciprocal"},
  "sfda-de": {"classes"},
  "sfit": {"stage", "agreement", "style"},
  "shot++": {"stage"},
  "tent": {"marginal_entropy"},
}
every_adapter = pytest.mark.parametrize("name", METHODS)


def recipe_of(name) -> Recipe:
  recipe = METHODS[name].recipe
  return dataclasses.replace(recipe, steps=40, batch_size=8, lr=0.02)


def stream_key(stream, index):
  return jax.random.fold_in(jax.random.fold_in(KEY, stream), index)


class Programs(NamedTuple):
  init: Any
  step: Any
  relabel: Any  # None: the adapter does not relabel
  predict_all: Any


@functools.cache
def programs(name, devices) -> Programs:
  """Return an adapter's functions, compiled once for all tests."""
  method = METHODS[name]
  relabels = isinstance(method, Relabels)
  return Programs(
    jax.jit(method.init),
    jax.jit(method.step, donate_argnums=1),
    jax.jit(method.relabel) if relabels else None,
    make_predict_all(PIXELS, make_mesh(devices)),
  )


def set_step(state, step):
  """Return a state that has counted N steps."""
  is_train = lambda node: isinstance(node, TrainState)
  count = lambda node: (
    node._replace(step=jnp.int32(step)) if is_train(node) else node
  )
  return jax.tree.map(count, state, is_leaf=is_train)


def batch_at(index) -> Batch:
  rows = np.arange(8 * index % 32, 8 * index % 32 + 8, dtype=np.int32)
  images = jnp.asarray(PIXELS[rows], jnp.float32) / 255
  return Batch(shard(images), rows=jnp.asarray(rows))


class Run(NamedTuple):
  start: Any  # the state after init
  network: Any
  infos: list
  programs: int  # compiled for the steps


@functools.cache
def run(name, steps, devices=1, same_batch=False, first=None) -> Run:
  """Adapt for some steps; to use a random key twice is an error."""
  method, recipe, mesh = METHODS[name], recipe_of(name), make_mesh(devices)
  init, step, relabel, predict_all = programs(name, devices)
  first = FIRST_STEP.get(name, 0) if first is None else first
  with jax.set_mesh(mesh), jax.debug_key_reuse(True):
    source = placement.put(tiny(), mesh)
    at = functools.partial(context, recipe, source)
    state = init(stream_key(INIT, 0), at(predict_all(source)))
    start, state = jax.device_get(state), set_step(state, first)
    infos = []
    for index in range(steps):
      batch = batch_at(0 if same_batch else index)
      here = at(batch=batch, step=first + index)
      state, info = step(stream_key(STEP, index), state, here)
      infos.append(jax.device_get(info))
      if relabel and index % 4 == 3:
        predictions = predict_all(method.network(state))
        here = at(predictions, step=first + index + 1)
        state = relabel(stream_key(RELABEL, index), state, here)
    network = jax.device_get(method.network(state))
  return Run(start, network, infos, step._cache_size())


@every_adapter
def test_it_is_an_adapter_with_a_recipe_and_a_state_of_arrays(name):
  method = METHODS[name]
  assert isinstance(method, Adapter)
  assert isinstance(method.recipe, Recipe)
  assert hash(method) == hash(dataclasses.replace(method))
  found = run(name, 6)
  for leaf in jax.tree.leaves(found.start):
    assert isinstance(leaf, np.ndarray | np.generic)
  assert found.network.spec == tiny().spec


# DINE uses no weight of the source: its own test holds that.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dine"}))
def test_it_starts_as_the_source(name):
  network = METHODS[name].network(run(name, 6).start)
  for a, b in zip(
    jax.tree.leaves(network), jax.tree.leaves(tiny()), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_a_recipe_is_static():
  assert jax.tree.leaves(Recipe()) == []
  found = jax.jit(lambda recipe: recipe.steps * jnp.ones(()))(Recipe(steps=7))
  assert found == 7.0


@pytest.mark.parametrize("name", ["recipe", *METHODS])
def test_every_number_has_bounds(name):
  kind = Recipe if name == "recipe" else type(METHODS[name])
  hints = get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    values = field.default
    for value in values if isinstance(values, tuple) else (values,):
      if isinstance(value, int | float) and not isinstance(value, bool):
        (bounds,) = hints[field.name].__metadata__
        assert isinstance(bounds, Bounds)
        assert bounds.holds(value)


@every_adapter
def test_one_device_equals_eight(name):
  one, eight = run(name, 6), run(name, 6, devices=8)
  for a, b in zip(
    jax.tree.leaves(one.network), jax.tree.leaves(eight.network), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(one.infos, eight.infos, rtol=2e-3, atol=2e-4)


# CoWA's weights grow with every relabeling: its own test holds them.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ada-bn", "cowa"}))
def test_steps_decrease_the_loss(name):
  infos = run(name, 12, same_batch=True).infos
  first, last = (
    np.mean([i[0] for i in part]) for part in (infos[:2], infos[-2:])
  )
  assert last < first - 1e-3


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ada-bn"}))
def test_only_what_is_meant_to_moves(name):
  before, after = tiny(), run(name, 6).network
  recipe = recipe_of(name)
  parts = recipe.parts(before)
  rates = {"classifier": recipe.classifier_rate, "frozen": 0.0}
  moved = set()
  for part, old, new in zip(
    jax.tree.leaves(parts),
    jax.tree.leaves(before.params),
    jax.tree.leaves(after.params),
  ):
    if (np.asarray(old) != np.asarray(new)).any():
      moved.add(part)
  expected = {p for p in jax.tree.leaves(parts) if rates.get(p, 1.0)}
  assert moved == expected
  assert moved


@every_adapter
def test_every_field_of_the_info_is_a_finite_scalar(name):
  expected = {"loss", *FIGURES.get(name, ())}
  terms = TERMS[name]
  for stage in terms.values() if isinstance(terms, dict) else [terms]:
    expected |= set(stage)
  for info in run(name, 6).infos:
    assert set(info._fields) | {"loss"} == expected
    for value in info:
      assert value.shape == ()
      assert value.dtype == np.float32
      assert np.isfinite(value)


@every_adapter
def test_every_weighted_term_counts_in_its_stage(name):
  terms = TERMS[name]
  stages = terms if isinstance(terms, dict) else {None: terms}
  for first, names in stages.items():
    # A distance from the source is 0 at first; a queue may end up of one class.
    infos = run(name, 6 if first is None else 1, first=first).infos
    assert any(info[0] != 0.0 for info in infos)
    for term in names:
      assert any(getattr(info, term) != 0.0 for info in infos), (first, term)
      assert all(np.isfinite(getattr(info, term)) for info in infos)


@every_adapter
def test_nothing_is_compiled_after_the_first_step(name):
  assert run(name, 6).programs == 1
  assert run(name, 6, devices=8).programs == 1


@every_adapter
def test_no_random_key_is_used_twice(name):
  """`run` has the check on; here is one that it would find."""
  run(name, 6)
  with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
    jax.jit(lambda key: jax.random.normal(key) + jax.random.normal(key))(KEY)
