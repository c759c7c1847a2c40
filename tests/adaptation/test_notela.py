"""NOTELA's teacher against loops over pairs, and the student's noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dfkt_jax import network as net
from dfkt_jax.adaptation import notela
from dfkt_jax.adaptation.notela import NOTELA, State
from dfkt_jax.contracts import Batch
from dfkt_jax.devices.mesh import DATA, make_mesh
from dfkt_jax.models.ccexam import DigitNet
from dfkt_jax.network import Classification
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.networks import spec, tiny

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# Far from the origin, where inner products do not tell who is near.
FEATURES = (20.0 + RNG.normal(size=(16, 3))).astype(np.float32)
LOGITS = RNG.normal(size=(16, 4)).astype(np.float32)
VALID = np.arange(16) < 13
RECIPE = dataclasses.replace(NOTELA.recipe, steps=10)


def state():
  return State(None, *map(jnp.asarray, (FEATURES, LOGITS)), None, VALID)


def nearest(row, count):
  """Return the nearest rows; the image itself is the first of `count`."""
  distance = ((FEATURES.astype(np.float64) - FEATURES[row]) ** 2).sum(1)
  distance[~VALID] = np.inf
  return np.argsort(distance)[1:count]


def by_hand(row, count, weight, softness, mutual):
  log_p = special.log_softmax(LOGITS.astype(np.float64), 1)
  scores = log_p[row].copy()
  near = nearest(row, count)
  if mutual:
    near = [j for j in near if row in nearest(j, count)]
  if len(near):
    scores += weight * np.exp(log_p[near]).mean(0)
  return special.softmax(scores / softness), len(near)


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize(
  ("count", "weight", "softness"), [(4, 2.0, 1.0), (3, 5.0, 0.5)]
)
def test_the_teacher_by_hand(count, weight, softness, mutual):
  method = NOTELA(count, weight, softness, mutual)
  found = jax.jit(method.teach)(state(), jnp.arange(13))
  expected, friends = zip(
    *(by_hand(row, count, weight, softness, mutual) for row in range(13))
  )
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
  # Some have no mutual neighbor: the test covers those.
  assert (0 in friends) == mutual


def test_a_hard_teacher_names_the_best_and_shares_a_tie():
  scores = jnp.array([[1.0, 3.0, 2.0], [2.0, 2.0, 0.0]])
  found = notela.sharpen(scores, 0.0)
  np.testing.assert_array_equal(found, [[0, 1, 0], [0.5, 0.5, 0]])
  np.testing.assert_allclose(notela.sharpen(scores, 1e-3), found, atol=1e-6)
  hard = jax.jit(NOTELA(4, softness=0.0).teach)(state(), jnp.arange(13))
  soft = jax.jit(NOTELA(4).teach)(state(), jnp.arange(13))
  np.testing.assert_array_equal(hard.argmax(1), soft.argmax(1))
  assert set(np.unique(hard)) == {0.0, 1.0}


def test_teaching_all_equals_teaching_each(monkeypatch):
  method = NOTELA(4, online=False)
  # 5 does not divide 16: the last chunk is filled up.
  monkeypatch.setattr(notela, "CHUNK", 5)
  alone = jax.jit(method.teach_all)(state()).targets
  np.testing.assert_allclose(
    alone, jax.jit(method.teach)(state(), jnp.arange(16)), rtol=1e-4
  )
  mesh = make_mesh(8)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA))
  with jax.set_mesh(mesh):
    shared = jax.jit(method.teach_all)(jax.device_put(state(), sharding))
  np.testing.assert_allclose(alone, shared.targets, rtol=1e-4)


def test_the_loss_by_hand():
  targets = special.softmax(3 * RNG.normal(size=(5, 4)), 1).astype(np.float32)
  targets[0] = [0, 1, 0, 0]
  logits = LOGITS[:5]
  expected = -(targets * special.log_softmax(logits, 1)).sum(1).mean()
  task = Classification(4)
  info = NOTELA().loss(task, jnp.asarray(logits), jnp.asarray(targets))
  assert info.loss == pytest.approx(expected, rel=1e-4)
  entropy = special.entr(targets).sum(1).mean()
  assert info.teacher_entropy == pytest.approx(entropy, rel=1e-4)
  moved = (targets.argmax(1) != logits.argmax(1)).mean()
  assert info.moved == pytest.approx(moved)


def ready(method, source=None):
  source = source or tiny()
  shape = (16, *source.spec.shape)
  pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
  predictions = make_predict_all(pixels, make_mesh(1))(source)
  begun = jax.jit(method.init)(KEY, context(RECIPE, source, predictions))
  images = jnp.asarray(pixels[4:8], jnp.float32) / 255
  return source, begun, predictions, Batch(images, rows=jnp.arange(4, 8))


def test_online_the_banks_follow_the_batch_without_noise():
  method = NOTELA(4)
  source, begun, _, batch = ready(method)
  noise = jax.random.uniform(KEY, batch.images.shape)
  here = context(RECIPE, source, batch=batch._replace(images=noise))
  after, _ = jax.jit(method.step)(KEY, begun, here)
  logits, taps = net.features(source, noise)
  np.testing.assert_allclose(after.logits[4:8], logits, rtol=1e-4)
  np.testing.assert_allclose(
    after.features[4:8], taps["penultimate"], rtol=1e-4
  )
  np.testing.assert_array_equal(after.logits[:4], begun.logits[:4])
  assert (after.logits[4:8] != begun.logits[4:8]).any()
  # An epoch changes nothing: the banks are newer than its predictions.
  again = method.relabel(KEY, after, context(RECIPE, source, step=4))
  np.testing.assert_array_equal(again.logits, after.logits)


def test_offline_the_teacher_waits_for_the_epoch():
  method = NOTELA(4, online=False)
  source, begun, predictions, batch = ready(method)
  here = context(RECIPE, source, batch=batch)
  after, _ = jax.jit(method.step)(KEY, begun, here)
  np.testing.assert_array_equal(after.targets, begun.targets)
  moved = predictions.replace(logits=jnp.roll(predictions.logits, 1, 1))
  here = context(RECIPE, source, moved)
  again = jax.jit(method.relabel)(KEY, after, here)
  expected = jax.jit(method.init)(KEY, here).targets
  np.testing.assert_allclose(again.targets, expected, rtol=1e-4)
  assert (again.targets != begun.targets).any()


def test_only_the_student_has_dropout():
  module = DigitNet(10, blocks=((4,),), hidden=16, dropout=0.5)
  method = NOTELA(4)
  source, begun, _, batch = ready(method, net.init(KEY, module, spec()))
  step, here = jax.jit(method.step), context(RECIPE, source, batch=batch)
  (one, a), (two, b) = (
    step(jax.random.key(seed), begun, here) for seed in (1, 2)
  )
  assert a.loss != b.loss
  assert a.teacher_entropy == b.teacher_entropy
  np.testing.assert_array_equal(one.logits, two.logits)


def test_padding_is_not_a_neighbor_where_images_are_few():
  few = state()._replace(valid=jnp.arange(16) < 3)
  method = NOTELA(8, mutual=False)
  found = jax.jit(method.teach)(few, jnp.arange(3))
  log_p = special.log_softmax(LOGITS[:3].astype(np.float64), 1)
  others = (np.exp(log_p).sum(0) - np.exp(log_p)) / 2
  np.testing.assert_allclose(
    found, special.softmax(log_p + 2.0 * others, 1), rtol=1e-3
  )
