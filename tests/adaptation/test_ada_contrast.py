"""AdaContrast's vote, queue, momentum network and loss by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.adaptation.ada_contrast import AdaContrast, Queue, State
from dfkt_jax.contracts import Batch
from tests.adaptation.contexts import context, predict
from tests.networks import tiny

KEY = jax.random.key(7)
RNG = np.random.default_rng(7)
IMAGES = RNG.uniform(size=(12, 8, 8, 1)).astype(np.float32)
METHOD = AdaContrast(neighbours=3, queue_size=8)
RECIPE = dataclasses.replace(
  AdaContrast.recipe, steps=40, batch_size=4, lr=0.05
)


def unit(*shape):
  x = RNG.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


LOGITS = RNG.normal(size=(4, 3)).astype(np.float32)
QUERIES, KEYS = unit(4, 5), unit(4, 5)
LABELS = np.array([0, 2, 1, 0], np.int32)
QUEUE = Queue(
  jnp.asarray(unit(8, 5)), jnp.array([0, 0, 1, 2, 2, 1, 0, 2], jnp.int32)
)


def test_the_loss_by_hand():
  method = dataclasses.replace(
    METHOD, label_weight=0.7, contrast_weight=0.5, diversity_weight=0.9
  )
  p = np.exp(LOGITS.astype(np.float64))
  p /= p.sum(1, keepdims=True)
  labeled = -np.log(p[np.arange(4), LABELS]).mean()
  contrast = 0.0
  for i in range(4):
    own = np.exp(QUERIES[i] @ KEYS[i] / 0.07)
    others = sum(
      np.exp(QUERIES[i] @ z / 0.07)
      for z, label in zip(np.asarray(QUEUE.keys), QUEUE.labels)
      if label != LABELS[i]
    )
    contrast -= np.log(own / (own + others)) / 4
  mean = p.mean(0)
  marginal = -(mean * np.log(mean)).sum()
  info = method.loss(jnp.asarray(LOGITS), QUERIES, KEYS, LABELS, QUEUE)
  assert info.cross_entropy == pytest.approx(labeled, rel=1e-4)
  assert info.contrast == pytest.approx(contrast, rel=1e-4)
  assert info.marginal_entropy == pytest.approx(marginal, rel=1e-4)
  expected = 0.7 * labeled + 0.5 * contrast - 0.9 * marginal
  assert info.loss == pytest.approx(expected, rel=1e-4)


def test_a_queue_of_the_same_class_has_no_contrast():
  queue = QUEUE._replace(labels=jnp.zeros(8, jnp.int32))
  labels = jnp.zeros(4, jnp.int32)

  def contrast(queries):
    info = METHOD.loss(jnp.asarray(LOGITS), queries, KEYS, labels, queue)
    return info.contrast

  assert contrast(jnp.asarray(QUERIES)) == 0.0
  gradient = jax.grad(contrast)(jnp.asarray(QUERIES))
  np.testing.assert_array_equal(gradient, 0.0)


def state(valid, **changes):
  source = tiny()
  features, predictions = unit(10, 5), RNG.dirichlet(np.ones(3), size=10)
  fields = dict(
    train=RECIPE.init(source),
    momentum=source,
    features=jnp.asarray(features),
    predictions=jnp.asarray(predictions, jnp.float32),
    valid=jnp.asarray(valid),
    queue=QUEUE,
  )
  return State(**{**fields, **changes})


def test_the_nearest_images_vote_and_the_image_itself_does_too():
  valid = np.arange(10) != 4
  bank = state(valid)
  features = np.asarray(bank.features)
  queries = features[[2, 7]]
  found = METHOD.vote(jnp.asarray(queries), bank)
  for query, label in zip(queries, found):
    similarity = np.where(valid, features @ query, -np.inf)
    near = np.argsort(-similarity)[:3]
    mean = np.asarray(bank.predictions)[near].mean(0)
    assert label == mean.argmax()
  # One neighbor is the image itself: the vote is its row of the bank.
  alone = dataclasses.replace(METHOD, neighbours=1)
  np.testing.assert_array_equal(
    alone.vote(jnp.asarray(queries), bank),
    bank.predictions[jnp.array([2, 7])].argmax(1),
  )


def test_the_queue_loses_its_oldest():
  queue, method = QUEUE, METHOD
  written = []
  for step in range(3):
    keys = jnp.full((3, 5), float(step + 1))
    queue = method.push(queue, keys, jnp.full(3, step + 10), jnp.int32(step))
    written.append(np.asarray(queue.labels).tolist())
  assert written[0] == [10, 10, 10, 2, 2, 1, 0, 2]
  assert written[1] == [10, 10, 10, 11, 11, 11, 0, 2]
  assert written[2] == [12, 10, 10, 11, 11, 11, 12, 12]
  np.testing.assert_array_equal(queue.keys[:, 0], [3, 1, 1, 2, 2, 2, 3, 3])


def test_a_batch_larger_than_the_queue_fills_it():
  labels = jnp.arange(11)
  queue = METHOD.push(QUEUE, jnp.ones((11, 5)), labels, jnp.int32(3))
  assert sorted(np.asarray(queue.labels)) == list(range(8))


def test_the_momentum_network_follows_slowly():
  slow, fast = tiny(0), tiny(1)
  moved = dataclasses.replace(METHOD, momentum_decay=0.9).follow(slow, fast)
  for a, b, c in zip(
    *map(jax.tree.leaves, (slow.params, fast.params, moved.params))
  ):
    np.testing.assert_allclose(c, 0.9 * a + 0.1 * b, rtol=1e-4, atol=1e-6)
  for a, b in zip(*map(jax.tree.leaves, (slow.batch_stats, moved.batch_stats))):
    np.testing.assert_array_equal(a, b)


def test_a_step_writes_predictions_of_the_momentum_network():
  source, other = tiny(0), tiny(1)
  predictions = predict(source, jnp.asarray(IMAGES))
  before = jax.jit(METHOD.init)(KEY, context(RECIPE, source, predictions))
  # Another momentum network, to distinguish the two.
  before = before._replace(momentum=other)
  rows = jnp.array([1, 3, 8, 11])
  batch = Batch(jnp.asarray(IMAGES)[rows], rows=rows)
  here = context(RECIPE, source, batch=batch)
  after, info = jax.jit(METHOD.step)(KEY, before, here)
  logits, taps, _ = net.train_features(other, batch.images, None)
  features = taps["penultimate"]
  features /= jnp.linalg.norm(features, axis=1, keepdims=True)
  np.testing.assert_allclose(after.features[rows], features, atol=1e-5)
  np.testing.assert_allclose(
    after.predictions[rows], jax.nn.softmax(logits), atol=1e-5
  )
  rest = np.setdiff1d(np.arange(12), rows)
  np.testing.assert_array_equal(after.features[rest], before.features[rest])
  # The student's weak view votes with the bank as it was before.
  _, taps, _ = net.train_features(source, batch.images, None)
  queries = taps["penultimate"]
  queries /= jnp.linalg.norm(queries, axis=1, keepdims=True)
  labels = METHOD.vote(queries, before)
  np.testing.assert_array_equal(after.queue.labels[:4], labels)
  np.testing.assert_array_equal(after.queue.labels[4:], before.queue.labels[4:])
  # The BatchNorm of each network follows its own inputs.
  stats = [
    np.asarray(n.batch_stats["bn1"]["mean"])
    for n in (other, after.momentum, after.train.network, source)
  ]
  assert (stats[0] != stats[1]).any()
  assert (stats[2] != stats[3]).any()
  assert np.isfinite(info.loss)


def test_strong_views_are_mirrored_only_if_asked_to():
  # Without crops, colors and blur a view is the image or its mirror image.
  method = dataclasses.replace(
    METHOD, colour=0.0, grey=0.0, blur=0.0, smallest_crop=0.99
  )
  images = jnp.zeros((50, 8, 8, 1)).at[:, :, :3].set(1.0)
  left = lambda views: np.asarray(views)[:, :, :4].mean((1, 2, 3)) > 0.5
  assert left(method.strong(KEY, images, False)).all()
  some = left(method.strong(KEY, images, True)).mean()
  assert 0.2 < some < 0.8
