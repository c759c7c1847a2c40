"""Distillation by predictions: loss by hand, PyTorch's optimizers, progress."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context
from dfkt_jax.distillation import optimizers
from dfkt_jax.distillation.kd import KD, hard_labels
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification
from tests.assets import torch as import_torch
from tests.networks import tiny

KEY = jax.random.key(3)
IMAGES = jax.random.uniform(jax.random.key(5), (32, 8, 8, 1))
BATCH = Batch(IMAGES, jnp.full(32, -1, jnp.int32))


def see(batch=BATCH, teacher=None, steps=10):
  return Context(
    teacher=teacher or tiny(), batch=batch, recipe=Recipe(steps=steps)
  )


def one_step(kd, student, context):
  state = kd.init(KEY, student, context)
  return jax.jit(kd.step)(KEY, state, context)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["kl", "l1"])
def test_info_is_the_equations(loss, weighted):
  teacher, student = tiny(), tiny(1)
  kd = KD(loss=loss, temperature=3.0, hard_label_weight=0.5)
  labels = jnp.where(jnp.arange(32) < 16, 4, -1)
  weights = jnp.arange(32.0) % 3 if weighted else None
  batch = Batch(IMAGES, labels, weights=weights)
  _, info = one_step(kd, student, see(batch))
  mean = lambda values: np.average(values, weights=weights)
  theirs = net.logits(teacher, IMAGES)
  ours, _ = net.train_logits(student, IMAGES, KEY)
  distance = {
    "kl": classification.kl(theirs, ours, 3.0),
    "l1": classification.l1(theirs, ours),
  }[loss]
  assert info.distance == pytest.approx(mean(distance), rel=1e-4)
  decisions = theirs.argmax(1)
  hard = classification.cross_entropy(ours, jnp.where(labels < 0, decisions, 4))
  assert info.hard_label == pytest.approx(mean(hard), rel=1e-4)
  agreement = mean(decisions == ours.argmax(1))
  assert info.agreement == pytest.approx(agreement)


def test_an_image_without_a_label_has_the_teachers():
  decisions = jnp.array([3, 1, 2])
  labels = hard_labels(jnp.array([-1, 0, -1]), decisions)
  np.testing.assert_array_equal(labels, [3, 0, 2])
  np.testing.assert_array_equal(hard_labels(None, decisions), decisions)


def test_hard_labels_pull_towards_the_label():
  kd = KD(lr=0.05, hard_label_weight=10.0)
  context = see(Batch(IMAGES, jnp.full(32, 4, jnp.int32)), steps=100)
  state, step = kd.init(KEY, tiny(1), context), jax.jit(kd.step)
  for index in range(20):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, context)
  assert info.hard_label < 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_bring_the_student_to_the_teacher(optimizer):
  kd = KD(optimizer=optimizer, lr=0.05)
  context = see(steps=60)
  state, step = kd.init(KEY, tiny(1), context), jax.jit(kd.step)
  distances = []
  for index in range(60):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, context)
    distances.append(float(info.distance))
  assert distances[-1] < 0.3 * distances[0]


def test_the_rate_falls_over_the_steps_of_the_recipe():
  kd = KD(lr=0.05)
  state = kd.init(KEY, tiny(1), see(steps=2))
  step = jax.jit(kd.step)
  moved = []
  for index in range(3):
    before = jax.tree.leaves(state.student.params)
    state, _ = step(jax.random.fold_in(KEY, index), state, see(steps=2))
    after = jax.tree.leaves(state.student.params)
    moved.append(any((a != b).any() for a, b in zip(before, after)))
  assert moved == [True, True, False]


def test_running_statistics_move_and_the_teacher_does_not():
  teacher, student = tiny(), tiny(1)
  before = jax.tree.map(np.asarray, teacher.variables)
  state, _ = one_step(KD(), student, see(teacher=teacher))
  jax.tree.map(np.testing.assert_array_equal, before, teacher.variables)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()),
    state.student.batch_stats,
    student.batch_stats,
  )
  assert all(jax.tree.leaves(moved))


def test_both_networks_see_the_augmented_images():
  kd = KD(crop_padding=2, flip=True)
  twin = dataclasses.replace(kd, crop_padding=0, flip=False)
  distance = lambda kd: float(one_step(kd, tiny(), see())[1].distance)
  assert distance(kd) != distance(twin)


def test_stored_soft_labels_replace_the_teacher():
  student = tiny(1)
  kd = KD(temperature=3.0, target="stored")
  stored = 4.0 * jax.random.normal(KEY, (32, 10))
  _, info = one_step(kd, student, see(BATCH._replace(soft_labels=stored)))
  ours, _ = net.train_logits(student, IMAGES, KEY)
  expected = classification.kl(stored, ours, 3.0).mean()
  assert info.distance == pytest.approx(float(expected), rel=1e-4)


def test_mixed_images_have_no_stored_labels():
  kd = KD(target="stored", mix=0.5)
  context = see(BATCH._replace(soft_labels=jnp.zeros((32, 10))))
  with pytest.raises(UsageError, match="--mix"):
    kd.step(KEY, kd.init(KEY, tiny(1), context), context)


def test_missing_stored_labels_are_refused():
  kd = KD(target="stored")
  with pytest.raises(UsageError, match="--target teacher"):
    kd.step(KEY, kd.init(KEY, tiny(1), see()), see())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers_are_pytorchs(name):
  torch = import_torch()
  start = np.array([1.0, -2.0, 3.0], np.float32)
  gradients = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  steps, lr = 8, 0.1
  parameter = torch.nn.Parameter(torch.tensor(start))
  if name == "sgd":
    theirs = torch.optim.SGD([parameter], lr, momentum=0.9, weight_decay=0.05)
  else:
    theirs = torch.optim.Adam([parameter], lr, weight_decay=0.05)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, steps)
  ours = optimizers.make(name, lr, steps, 0.9, 0.05)
  value = jnp.asarray(start)
  state = ours.init(value)
  for gradient in gradients:
    parameter.grad = torch.tensor(gradient)
    theirs.step()
    schedule.step()
    update, state = ours.update(jnp.asarray(gradient), state, value)
    value += update
  np.testing.assert_allclose(
    value, parameter.detach().numpy(), rtol=1e-5, atol=1e-6
  )
