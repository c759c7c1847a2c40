"""SFDA-DE's surrogates and loss against plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.adaptation import sfda_de
from dfkt_jax.adaptation.sfda_de import SFDADE, UNKNOWN, Surrogates
from dfkt_jax.contracts import Batch, Predictions
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.losses.mmd import contrastive_discrepancy
from dfkt_jax.models.layers import Bottleneck
from dfkt_jax.network import layers
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.networks import spec, tiny

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
RECIPE = dataclasses.replace(
  SFDADE.recipe, steps=10, lr=0.01, backbone_rate=1.0, weight_decay=0.0
)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


ANCHORS = unit(
  np.array([[9, 1, 0], [0, 9, 1], [1, 0, 9], [-5, -5, -5]], np.float32)
)


def predictions(rows=50):
  rng = np.random.default_rng(1)
  # Turned away from the anchors; no image is near the last one.
  near = unit(ANCHORS[:3] + 0.3 * np.roll(np.eye(3), 1, 1))
  labels = np.arange(rows) % 3
  labels[: rows // 2] = 0
  features = 3.0 * near[labels] + 0.3 * rng.normal(size=(rows, 3))
  features[-2:] = 50.0 * ANCHORS[3]  # padding
  logits = jnp.zeros((rows, 4))
  valid = jnp.arange(rows) < rows - 2
  return Predictions(jnp.asarray(features, jnp.float32), logits, valid)


def k_means_by_hand(features, centers):
  for _ in range(100):
    nearest = (features @ centers.T).argmax(1)
    moved = centers.copy()
    for k in set(nearest):
      moved[k] = unit(features[nearest == k].sum(0))
    change = np.linalg.norm(moved - centers, axis=1).max()
    centers = moved
    if change < 1e-3:
      return centers
  raise AssertionError("it does not rest")


def test_spherical_k_means_by_hand():
  given = predictions()
  features = unit(np.asarray(given.features))
  found = sfda_de.k_means(jnp.asarray(features), given.valid, ANCHORS)
  expected = k_means_by_hand(features[:48], ANCHORS)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.abs(expected[:3] - ANCHORS[:3]).max() > 0.1
  # No image is near the last anchor: it stays, with or without padding.
  np.testing.assert_array_equal(found[3], ANCHORS[3])


@pytest.mark.parametrize(
  ("threshold", "least"), [(0.5, 5), (0.01, 5), (0.5, 12)]
)
def test_surrogates_by_hand(threshold, least):
  given = predictions()
  method = SFDADE(threshold, least, variance_scale=2.0)
  surrogates, labels = method.estimate(given, jnp.asarray(ANCHORS))
  raw = np.asarray(given.features, np.float64)[:48]
  cosine = unit(raw) @ k_means_by_hand(unit(raw), ANCHORS).T
  nearest = cosine.argmax(1)
  kept = 0.5 * (1 - cosine.max(1)) < threshold
  assert kept.all() == (threshold == 0.5)
  for k in range(4):
    own = raw[kept & (nearest == k)]
    assert surrogates.known[k] == (len(own) >= least)
    if len(own) < least:
      kept &= nearest != k
      continue
    mean = np.linalg.norm(own.mean(0)) * ANCHORS[k]
    deviation = np.sqrt(2.0 * own.var(0))
    np.testing.assert_allclose(surrogates.mean[k], mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(surrogates.deviation[k], deviation, rtol=1e-2)
  expected = np.where(kept, nearest, UNKNOWN)
  np.testing.assert_array_equal(labels[:48], expected)
  assert (labels[48:] == UNKNOWN).all()
  assert surrogates.known[0]
  # Two classes have fewer than twelve images.
  assert surrogates.known[1:3].any() == (least == 5)


def surrogates(known=(True, True, True, False)):
  return Surrogates(
    jnp.arange(4.0)[:, None] * jnp.ones((4, 3)),
    0.1 * jnp.ones((4, 3)),
    jnp.asarray(known),
  )


def test_features_are_drawn_for_the_classes_of_the_batch():
  method = SFDADE(classes_per_step=2, draws_per_class=400)
  labels = jnp.array([2, 2, 1, 3, 3, 3, UNKNOWN, 1, 1])
  drawn, classes = method.draw(KEY, labels, surrogates())
  np.testing.assert_array_equal(classes, [1, 2])  # 3 has no surrogate
  drawn = np.asarray(drawn).reshape(2, 400, 3)
  np.testing.assert_allclose(drawn.mean(1).T, [[1.0, 2.0]] * 3, atol=0.03)
  np.testing.assert_allclose(drawn.std(1), 0.1, rtol=0.2)


def test_ties_are_broken_at_random_and_missing_classes_are_unknown():
  method = SFDADE(classes_per_step=2, draws_per_class=1)
  labels = jnp.array([0, 1, 2])
  met = {
    tuple(
      sorted(method.draw(jax.random.key(i), labels, surrogates())[1].tolist())
    )
    for i in range(20)
  }
  assert met == {(0, 1), (0, 2), (1, 2)}
  _, classes = method.draw(KEY, jnp.array([2, 2, 3]), surrogates())
  np.testing.assert_array_equal(classes, [2, UNKNOWN])


def test_the_loss_is_of_features_and_of_predictions():
  method = SFDADE(draws_per_class=2)
  drawn, features = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3))
  s_logits, t_logits = RNG.normal(size=(6, 4)), RNG.normal(size=(5, 4))
  labels = np.array([2, 2, UNKNOWN, 0, 1])
  classes = np.array([2, 0, UNKNOWN])
  info = method.loss(
    *(
      jnp.asarray(x, jnp.float32) for x in (drawn, s_logits, features, t_logits)
    ),
    jnp.asarray(labels),
    jnp.asarray(classes),
  )
  # UNKNOWN draws have no class, and neither has the image of class 1.
  s_of = np.repeat(np.eye(3, dtype=bool), 2, axis=0) & [True, True, False]
  t_of = np.array(
    [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=bool
  )
  expected = []
  for s, t in (
    (drawn, features),
    (special.softmax(s_logits, 1), special.softmax(t_logits, 1)),
  ):
    s, t = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
    expected += contrastive_discrepancy(s, t, s_of, t_of)
  np.testing.assert_allclose(info[1:5], expected, rtol=1e-4)
  total = expected[0] - expected[1] + expected[2] - expected[3]
  assert info.loss == pytest.approx(float(total), rel=1e-4)
  assert info.classes == 2.0


def ready(method, source=None):
  source = source or tiny()
  pixels = RNG.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
  found = make_predict_all(pixels, make_mesh(1))(source)
  begun = jax.jit(method.init)(KEY, context(RECIPE, source, found))
  images = jnp.asarray(pixels, jnp.float32) / 255
  batch = Batch(images, rows=jnp.arange(16))
  return source, begun, context(RECIPE, source, batch=batch)


def test_batch_norm_learns_ten_times_as_fast():
  slow = SFDADE(minimum_images=1, norm_rate=1.0)
  source, begun, here = ready(slow)

  def move(method):
    after = method.network(jax.jit(method.step)(KEY, begun, here)[0])
    return jax.tree.map(jnp.subtract, after.params, source.params)

  one, ten = move(slow), move(SFDADE(minimum_images=1))
  for layer, changes in one.items():
    factor = 10.0 if layer.startswith("bn") else 1.0
    for name, change in changes.items():
      np.testing.assert_allclose(
        ten[layer][name], factor * change, rtol=1e-2, atol=1e-6
      )
  assert jnp.abs(one["bn1"]["scale"]).max() > 1e-5


def test_without_kept_images_there_is_no_loss_and_no_move():
  method = SFDADE(minimum_images=1000)
  source, begun, here = ready(method)
  assert (begun.labels == UNKNOWN).all()
  after, info = jax.jit(method.step)(KEY, begun, here)
  assert info.loss == 0.0
  for a, b in zip(
    jax.tree.leaves(source.params),
    jax.tree.leaves(method.network(after).params),
  ):
    np.testing.assert_array_equal(a, b)


def test_anchors_are_directions_of_the_classifiers_weights():
  module = models.convnet.ConvNet(10, (4, 8), bottleneck=Bottleneck(6))
  source = net.init(KEY, module, spec())
  _, begun, _ = ready(SFDADE(), source)
  kernel = source.params["classifier"]["kernel"]
  np.testing.assert_allclose(begun.anchors, unit(kernel.T), rtol=1e-4)
  assert layers.kernel(source, layers.list_layers(source)[-1]).shape == (6, 10)
