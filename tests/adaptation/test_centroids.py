"""Pseudo-labels against released SHOT code and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.adaptation import centroids
from dfkt_jax.devices.mesh import DATA, make_mesh
from tests.assets import fixtures

RNG = np.random.default_rng(0)


def by_hand(features, p, threshold):
  ones = np.ones((len(features), 1))
  f = np.concatenate([features, ones], 1)
  f /= np.linalg.norm(f, axis=1, keepdims=True)
  labels, weights = p.argmax(1), p
  for _ in range(2):
    centers = weights.T @ f / (1e-8 + weights.sum(0)[:, None])
    kept = np.flatnonzero(np.bincount(labels, minlength=p.shape[1]) > threshold)
    centers = centers[kept]
    cosine = f @ centers.T / np.linalg.norm(centers, axis=1)
    labels = kept[cosine.argmax(1)]
    weights = np.eye(p.shape[1])[labels]
  return labels


def test_pseudo_labels_equal_those_of_released_code():
  peer = fixtures()
  features = peer["shot_features"]
  p = jax.nn.softmax(features @ peer["shot_weights"].T)
  labels = centroids.pseudo_labels(features, p, np.ones(400, bool))
  np.testing.assert_array_equal(labels, peer["shot_pseudo_labels"])


def test_small_classes_and_padding_have_no_part_in_centroids():
  features = RNG.normal(size=(60, 4)).astype(np.float32)
  p = np.array(jax.nn.softmax(3.0 * RNG.normal(size=(60, 5))), np.float32)
  p[:, 4] = 0.0
  padding = RNG.normal(size=(4, 4)).astype(np.float32)
  strange = np.eye(5, dtype=np.float32)[[4, 4, 4, 4]]
  valid = np.arange(64) < 60
  for threshold in (0, 11):
    labels = centroids.pseudo_labels(
      jnp.concatenate([features, padding]),
      jnp.concatenate([p, strange]),
      valid,
      threshold,
    )
    expected = by_hand(features, p, threshold)
    np.testing.assert_array_equal(labels[:60], expected)
    assert 4 not in labels
  everywhere = centroids.pseudo_labels(features, p, valid[:60], threshold=1000)
  assert len(np.unique(everywhere)) > 1


def test_pseudo_labels_do_not_depend_on_devices():
  features = RNG.normal(size=(64, 4)).astype(np.float32)
  p = np.asarray(jax.nn.softmax(RNG.normal(size=(64, 5))), np.float32)
  alone = centroids.pseudo_labels(features, p, np.ones(64, bool))
  mesh = make_mesh(8)
  spec = jax.sharding.PartitionSpec(DATA)
  sharding = jax.sharding.NamedSharding(mesh, spec)
  with jax.set_mesh(mesh):
    args = jax.device_put((features, p, np.ones(64, bool)), sharding)
    shared = jax.jit(centroids.pseudo_labels)(*args)
  np.testing.assert_array_equal(alone, shared)


def test_sure_images_are_the_lower_of_two_groups():
  scale = np.repeat([0.2, 8.0], 50)[:, None]
  logits = scale * np.eye(4)[RNG.integers(4, size=100)]
  valid = np.ones(100, bool)
  valid[99] = False
  found = centroids.sure(jnp.asarray(logits, jnp.float32), valid)
  np.testing.assert_array_equal(found, (np.arange(100) >= 50) & valid)


def test_class_moments_by_hand():
  features = RNG.normal(size=(30, 3)).astype(np.float32)
  labels = RNG.integers(3, size=30)
  weights = np.eye(4, dtype=np.float32)[labels]
  weights[0] *= 2.0
  valid = np.arange(30) < 25
  found = centroids.class_moments(features, weights, valid)
  for k in range(3):
    w = weights[:25, k]
    mean = (w[:, None] * features[:25]).sum(0) / w.sum()
    square = (w[:, None] * (features[:25] - mean) ** 2).sum(0) / w.sum()
    np.testing.assert_allclose(found.mean[k], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance[k], square, rtol=1e-3, atol=1e-5)
  assert found.weight[3] == 0
  assert (found.mean[3] == 0).all()
