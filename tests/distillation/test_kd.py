"""The student's step: its loss by hand, PyTorch's optimisers, its progress."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.distillation import optimizers
from dfkt_jax.distillation.kd import KD
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification
from dfkt_jax.synthesis.contract import Batch
from tests.assets import torch as import_torch
from tests.networks import tiny

KEY = jax.random.key(3)
IMAGES = jax.random.uniform(jax.random.key(5), (32, 8, 8, 1))
BATCH = Batch(IMAGES, jnp.full(32, -1, jnp.int32))


@pytest.mark.parametrize("loss", ["kl", "l1"])
def test_info_is_the_equations(loss):
  teacher, student = tiny(), tiny(1)
  kd = KD(steps=10, loss=loss, temperature=3.0, hard_label_weight=0.5)
  labels = jnp.where(jnp.arange(32) < 16, 4, -1)
  step = jax.jit(kd.step)
  _, info = step(KEY, kd.init(student), Batch(IMAGES, labels), teacher)
  theirs = net.logits(teacher, IMAGES)
  ours, _ = net.train_logits(student, IMAGES, KEY)
  distance = {
    "kl": classification.kl(theirs, ours, 3.0),
    "l1": classification.l1(theirs, ours),
  }[loss]
  assert info.distance == pytest.approx(float(distance), rel=1e-4)
  decisions = theirs.argmax(1)
  hard = classification.cross_entropy(ours, jnp.where(labels < 0, decisions, 4))
  assert info.hard_label == pytest.approx(float(hard), rel=1e-4)
  agreement = (decisions == ours.argmax(1)).mean()
  assert info.agreement == pytest.approx(float(agreement))


def test_hard_labels_pull_towards_the_label():
  teacher, student = tiny(), tiny(1)
  kd = KD(steps=100, lr=0.05, hard_label_weight=10.0)
  state, step = kd.init(student), jax.jit(kd.step)
  labels = jnp.full(32, 4, jnp.int32)
  for index in range(20):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, Batch(IMAGES, labels), teacher)
  assert info.hard_label < 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_bring_the_student_to_the_teacher(optimizer):
  teacher, student = tiny(), tiny(1)
  kd = KD(steps=60, optimizer=optimizer, lr=0.05)
  state, step = kd.init(student), jax.jit(kd.step)
  distances = []
  for index in range(60):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, BATCH, teacher)
    distances.append(float(info.distance))
  assert distances[-1] < 0.3 * distances[0]


def test_running_statistics_move_and_the_teacher_does_not():
  teacher, student = tiny(), tiny(1)
  kd = KD(steps=10)
  before = jax.tree.map(np.asarray, teacher.variables)
  state, _ = jax.jit(kd.step)(KEY, kd.init(student), BATCH, teacher)
  jax.tree.map(np.testing.assert_array_equal, before, teacher.variables)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()),
    state.student.batch_stats,
    student.batch_stats,
  )
  assert all(jax.tree.leaves(moved))


def test_augmentation_is_of_what_both_networks_see():
  teacher = tiny()
  kd = KD(steps=10, crop_padding=2, flip=True)
  twin = dataclasses.replace(kd, crop_padding=0, flip=False)
  step = lambda kd: jax.jit(kd.step)(KEY, kd.init(teacher), BATCH, teacher)
  assert float(step(kd)[1].distance) != float(step(twin)[1].distance)


def test_stored_soft_labels_stand_in_for_the_teacher():
  teacher, student = tiny(), tiny(1)
  kd = KD(steps=10, temperature=3.0, target="stored")
  stored = 4.0 * jax.random.normal(KEY, (32, 10))
  batch = BATCH._replace(soft_labels=stored)
  _, info = jax.jit(kd.step)(KEY, kd.init(student), batch, teacher)
  ours, _ = net.train_logits(student, IMAGES, KEY)
  expected = classification.kl(stored, ours, 3.0)
  assert info.distance == pytest.approx(float(expected), rel=1e-4)


def test_mixed_images_have_no_stored_labels():
  kd = KD(steps=10, target="stored", mix=0.5)
  batch = BATCH._replace(soft_labels=jnp.zeros((32, 10)))
  with pytest.raises(UsageError, match="--mix"):
    kd.step(KEY, kd.init(tiny(1)), batch, tiny())


def test_stored_labels_that_are_not_there_are_refused():
  kd = KD(steps=10, target="stored")
  with pytest.raises(UsageError, match="--target teacher"):
    kd.step(KEY, kd.init(tiny(1)), BATCH, tiny())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimisers_are_pytorchs(name):
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
