"""NOTELA's teacher against loops over pairs, and what the student sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dfkt_jax import network as net
from dfkt_jax import parallel
from dfkt_jax.adaptation import notela
from dfkt_jax.adaptation.answers import make_look
from dfkt_jax.adaptation.contract import Batch
from dfkt_jax.adaptation.notela import NOTELA, State
from dfkt_jax.models.ccexam import DigitNet
from tests.networks import spec, tiny

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# Far from the origin: distances, and no inner products, say who is near.
FEATURES = (20.0 + RNG.normal(size=(16, 3))).astype(np.float32)
LOGITS = RNG.normal(size=(16, 4)).astype(np.float32)
VALID = np.arange(16) < 13
COURSE = dataclasses.replace(NOTELA.course, steps=10)


def state():
  return State(None, *map(jnp.asarray, (FEATURES, LOGITS)), None, VALID)


def nearest(row, count):
  """The image itself is the first of `count`."""
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
  # Some have no mutual neighbour: the test covers those.
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


def test_all_at_once_is_one_after_the_other(monkeypatch):
  method = NOTELA(4, online=False)
  # 13 does not divide by 5: the last chunk is filled up.
  monkeypatch.setattr(notela, "CHUNK", 5)
  alone = jax.jit(method._teach_all)(state()).targets
  np.testing.assert_allclose(
    alone, jax.jit(method.teach)(state(), jnp.arange(16)), rtol=1e-4
  )
  mesh = parallel.make_mesh(8)
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(parallel.DATA)
  )
  with jax.set_mesh(mesh):
    shared = jax.jit(method._teach_all)(jax.device_put(state(), sharding))
  np.testing.assert_allclose(alone, shared.targets, rtol=1e-4)


def test_the_loss_by_hand():
  targets = special.softmax(3 * RNG.normal(size=(5, 4)), 1).astype(np.float32)
  targets[0] = [0, 1, 0, 0]
  logits = LOGITS[:5]
  expected = -(targets * special.log_softmax(logits, 1)).sum(1).mean()
  info = NOTELA().loss(jnp.asarray(logits), jnp.asarray(targets))
  assert info.loss == pytest.approx(expected, rel=1e-4)
  entropy = special.entr(targets).sum(1).mean()
  assert info.teacher_entropy == pytest.approx(entropy, rel=1e-4)
  moved = (targets.argmax(1) != logits.argmax(1)).mean()
  assert info.moved == pytest.approx(moved)


def ready(method, source=None):
  source = source or tiny()
  shape = (16, *source.spec.shape)
  pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
  answers = make_look(pixels, parallel.make_mesh(1))(source)
  begun = jax.jit(method.init, static_argnums=3)(KEY, source, answers, COURSE)
  images = jnp.asarray(pixels[4:8], jnp.float32) / 255
  return source, begun, answers, Batch(images, jnp.arange(4, 8))


def test_online_the_banks_follow_the_batch_without_noise():
  method = NOTELA(4)
  source, begun, _, batch = ready(method)
  noise = jax.random.uniform(KEY, batch.images.shape)
  after, _ = jax.jit(method.step, static_argnums=3)(
    KEY, begun, batch._replace(images=noise), COURSE
  )
  logits, taps = net.features(source, noise)
  np.testing.assert_allclose(after.logits[4:8], logits, rtol=1e-4)
  np.testing.assert_allclose(
    after.features[4:8], taps["penultimate"], rtol=1e-4
  )
  np.testing.assert_array_equal(after.logits[:4], begun.logits[:4])
  assert (after.logits[4:8] != begun.logits[4:8]).any()
  # The epoch changes nothing: the banks are newer than its answers.
  again = method.relabel(KEY, after, None, COURSE)
  np.testing.assert_array_equal(again.logits, after.logits)


def test_offline_the_teacher_waits_for_the_epoch():
  method = NOTELA(4, online=False)
  _, begun, answers, batch = ready(method)
  after, _ = jax.jit(method.step, static_argnums=3)(KEY, begun, batch, COURSE)
  np.testing.assert_array_equal(after.targets, begun.targets)
  moved = answers.replace(logits=jnp.roll(answers.logits, 1, 1))
  again = jax.jit(method.relabel, static_argnums=3)(KEY, after, moved, COURSE)
  expected = jax.jit(method.init, static_argnums=3)(
    KEY, tiny(), moved, COURSE
  ).targets
  np.testing.assert_allclose(again.targets, expected, rtol=1e-4)
  assert (again.targets != begun.targets).any()


def test_dropout_is_the_students_alone():
  module = DigitNet(10, blocks=((4,),), hidden=16, dropout=0.5)
  method = NOTELA(4)
  _, begun, _, batch = ready(method, net.init(KEY, module, spec()))
  (one, a), (two, b) = (
    jax.jit(method.step, static_argnums=3)(
      jax.random.key(seed), begun, batch, COURSE
    )
    for seed in (1, 2)
  )
  assert a.loss != b.loss
  assert a.teacher_entropy == b.teacher_entropy
  np.testing.assert_array_equal(one.logits, two.logits)


def test_padding_is_no_neighbour_where_images_are_few():
  few = state()._replace(valid=jnp.arange(16) < 3)
  method = NOTELA(8, mutual=False)
  found = jax.jit(method.teach)(few, jnp.arange(3))
  log_p = special.log_softmax(LOGITS[:3].astype(np.float64), 1)
  others = (np.exp(log_p).sum(0) - np.exp(log_p)) / 2
  np.testing.assert_allclose(
    found, special.softmax(log_p + 2.0 * others, 1), rtol=1e-3
  )
