"""Guarantees of every learner, whatever the source of its images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.contracts import Batch, Context, Learner, unlabelled
from dfkt_jax.data.stream import put
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.errors import UsageError
from dfkt_jax.network import placement
from tests.networks import tiny

KEY = jax.random.key(8)
RECIPE = Recipe(steps=12, batch_size=16)
SETTINGS = KD(
  lr=0.02, temperature=2.0, hard_label_weight=0.3, crop_padding=1, flip=True
)
LEARNERS = {
  "kd": SETTINGS,
  "noise-adaptation": NoiseAdaptation(SETTINGS),
  "relations": ContrastiveRelations(SETTINGS),
}
PIXELS = jax.random.uniform(jax.random.key(5), (RECIPE.steps, 16, 8, 8, 1))
every_learner = pytest.mark.parametrize("name", LEARNERS)


def settings_of(learner) -> KD:
  return learner if isinstance(learner, KD) else learner.kd


def with_settings(name, **changes):
  learner = LEARNERS[name]
  settings = dataclasses.replace(settings_of(learner), **changes)
  if isinstance(learner, KD):
    return settings
  return dataclasses.replace(learner, kd=settings)


def on(batch, teacher=None):
  return Context(teacher=teacher or tiny(), batch=batch, recipe=RECIPE)


def one_step(learner, batch):
  context = on(batch)
  state = learner.init(KEY, tiny(1), context)
  return jax.device_get(jax.jit(learner.step)(KEY, state, context))


def params(learner, state):
  return jax.tree.leaves(learner.student(state).params)


@functools.cache
def run(name, devices=1):
  """Return the state, the infos and the count of programs of a whole run."""
  learner, mesh = LEARNERS[name], make_mesh(devices)
  with jax.set_mesh(mesh):
    teacher, student = placement.put((tiny(), tiny(1)), mesh)
    context = Context(teacher=teacher, recipe=RECIPE)
    state = placement.create(learner.init, KEY, student, context)
    step = jax.jit(learner.step, donate_argnums=1)
    infos = []
    for index in range(RECIPE.steps):
      images = np.asarray(PIXELS[index])
      batch = put(Batch(images, np.full(16, -1, np.int32)), mesh)
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, context._replace(batch=batch))
      infos.append(jax.device_get(info))
  return jax.device_get(state), infos, step._cache_size()


@every_learner
def test_it_is_a_learner_and_keeps_the_networks_spec(name):
  learner = LEARNERS[name]
  assert isinstance(learner, Learner)
  assert hash(learner) == hash(dataclasses.replace(learner))
  state, _, _ = run(name)
  assert learner.student(state).spec == tiny().spec


@every_learner
def test_one_device_equals_eight(name):
  _, one, _ = run(name)
  _, eight, _ = run(name, devices=8)
  for field in one[0]._fields:
    a, b = ([getattr(info, field) for info in infos] for infos in (one, eight))
    np.testing.assert_allclose(b[0], a[0], rtol=1e-3, atol=1e-5)
    # Angles between nearly equal features amplify the order of sums.
    np.testing.assert_allclose(b[:3], a[:3], rtol=2e-2, atol=1e-3)


@every_learner
def test_every_term_is_finite_and_counts(name):
  _, infos, _ = run(name)
  for info in infos:
    for field, value in info._asdict().items():
      assert value.shape == ()
      assert np.isfinite(value)
      assert field == "agreement" or value > 0.0


@every_learner
def test_it_comes_closer_to_the_teacher(name):
  _, infos, _ = run(name)
  assert infos[-1].distance < infos[0].distance


@every_learner
def test_no_recompilation_after_the_first_step(name):
  assert run(name)[2] == 1
  assert run(name, devices=8)[2] == 1


@every_learner
def test_hard_labels_weigh_in(name):
  students = []
  for weight in (0.0, 3.0):
    learner = with_settings(name, hard_label_weight=weight)
    state, info = one_step(learner, unlabelled(PIXELS[0, :6]))
    assert info.hard_label > 0.0
    students.append(params(learner, state))
  assert any((a != b).any() for a, b in zip(*students))


@every_learner
def test_labels_of_the_source_are_the_hard_labels(name):
  learner = LEARNERS[name]
  labelled = Batch(PIXELS[0], jnp.arange(16, dtype=jnp.int32) % 10)
  _, own = one_step(learner, labelled)
  _, decided = one_step(learner, unlabelled(PIXELS[0]))
  assert own.hard_label != decided.hard_label
  assert own.distance == pytest.approx(decided.distance)
  _, without = one_step(learner, Batch(PIXELS[0]))
  assert without == decided


@every_learner
def test_stored_soft_labels_replace_the_teacher(name):
  learner = with_settings(name, target="stored")
  near, far = (
    unlabelled(PIXELS[0])._replace(soft_labels=scale * jnp.eye(16, 10))
    for scale in (1.0, 20.0)
  )
  _, near = one_step(learner, near)
  _, far = one_step(learner, far)
  assert far.distance > near.distance
  with pytest.raises(UsageError, match="--target stored needs"):
    one_step(learner, unlabelled(PIXELS[0]))


@every_learner
def test_terms_are_weighted_means_over_the_examples(name):
  learner = LEARNERS[name]
  batch = unlabelled(PIXELS[0])
  first = jnp.arange(16) < 8
  weighted = lambda weights: one_step(learner, batch._replace(weights=weights))
  plain_state, plain = one_step(learner, batch)
  alike_state, alike = weighted(jnp.full(16, 3.0))
  _, low = weighted(first.astype(jnp.float32))
  _, high = weighted(1.0 - first)
  for field in plain._fields:
    one, other = getattr(low, field), getattr(high, field)
    both = getattr(plain, field)
    assert getattr(alike, field) == pytest.approx(both, rel=1e-4)
    assert (one + other) / 2 == pytest.approx(both, rel=1e-4)
    assert field == "agreement" or one != pytest.approx(other, rel=1e-4)
  states = (params(learner, state) for state in (plain_state, alike_state))
  for a, b in zip(*states):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@every_learner
def test_labels_of_examples_without_weight_change_nothing(name):
  learner = LEARNERS[name]
  weights = (jnp.arange(16) < 12).astype(jnp.float32)
  students = []
  for label in (1, 2):
    labels = jnp.where(weights > 0, 0, label)
    batch = Batch(PIXELS[0], labels, weights=weights)
    students.append(jax.tree.leaves(one_step(learner, batch)))
  for a, b in zip(*students):
    np.testing.assert_array_equal(a, b)


@every_learner
def test_a_batch_without_any_weight_stays_finite(name):
  batch = unlabelled(PIXELS[0])._replace(weights=jnp.zeros(16))
  state, info = one_step(LEARNERS[name], batch)
  assert all(value == 0.0 for value in info)
  for leaf in params(LEARNERS[name], state):
    assert np.isfinite(leaf).all()
