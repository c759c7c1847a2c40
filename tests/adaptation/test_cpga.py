"""CPGA's generator, labels and losses against plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dfkt_jax.adaptation import centroids
from dfkt_jax.adaptation.cpga import CPGA, Labels, State
from dfkt_jax.contracts import Batch, Predictions
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.rounds.target_predictions import make_predict_all
from tests.adaptation.contexts import context
from tests.networks import tiny

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SOURCE = tiny()
RECIPE = dataclasses.replace(CPGA.recipe, steps=10, lr=0.02)
SMALL = CPGA(
  generator_steps=3,
  generator_batch_size=16,
  generator_width=8,
  latent=4,
  prototypes_per_class=1,
  projection_width=6,
)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def classify(features):
  linear = jax.device_get(SOURCE.params["linear"])
  return np.asarray(features) @ linear["kernel"] + linear["bias"]


def test_the_generators_loss_by_hand():
  made = RNG.normal(size=(4, 8)).astype(np.float32)
  labels = np.array([0, 0, 3, 3])
  log_p = special.log_softmax(classify(made), 1)
  expected = -log_p[np.arange(4), labels].mean()
  loss = lambda weight: SMALL.generator_loss(
    KEY, SOURCE, jnp.asarray(made), jnp.asarray(labels), weight
  )
  assert loss(0.0) == pytest.approx(expected, rel=1e-4)
  # One other feature of the class and both of the other class: no choice.
  cosine = unit(made) @ unit(made).T
  for i, (own, others) in enumerate(
    [(1, [2, 3]), (0, [2, 3]), (3, [0, 1]), (2, [0, 1])]
  ):
    positive = np.exp(cosine[i, own] - 0.5)
    share = positive / (positive + np.exp(cosine[i, others]).sum())
    expected -= np.log(share) / 4
  assert loss(1.0) == pytest.approx(expected, rel=1e-4)


def test_a_class_alone_in_the_batch_is_left_out_of_the_contrast():
  made = jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32)
  labels = jnp.array([0, 1, 2])
  loss = lambda weight: SMALL.generator_loss(KEY, SOURCE, made, labels, weight)
  assert loss(1.0) == pytest.approx(float(loss(0.0)))


def test_the_classifier_recognizes_prototypes_of_every_class():
  method = dataclasses.replace(
    SMALL,
    generator_steps=300,
    generator_batch_size=32,
    generator_width=64,
    latent=32,
    generator_lr=1e-2,
    prototypes_per_class=6,
  )
  trained = jax.jit(method.train_generator)(KEY, SOURCE)
  drawn = method.draw(KEY, SOURCE, trained)
  assert drawn.shape == (10, 6, 8)
  right = classify(drawn).argmax(-1) == np.arange(10)[:, None]
  assert right.mean() > 0.9
  other = method.draw(jax.random.key(9), SOURCE, trained)
  assert (other != drawn).all()
  # The contrast begins at its step, and pulls a class together.
  plain = dataclasses.replace(method, contrast_after=1000)
  plainly = plain.draw(KEY, SOURCE, jax.jit(plain.train_generator)(KEY, SOURCE))

  def spread(x):
    x = unit(np.asarray(x))
    return np.einsum("kid,kjd->kij", x, x).mean()

  assert spread(drawn) > spread(plainly) + 0.01


def predictions(rows=40):
  logits = 2.5 * RNG.normal(size=(rows, 3))
  logits[:, 2] -= 6.0  # hardly any image has this class, and none surely
  features = RNG.normal(size=(rows, 4)) + 2 * logits @ RNG.normal(size=(3, 4))
  parts = (jnp.asarray(x, jnp.float32) for x in (features, logits))
  return Predictions(*parts, jnp.arange(rows) < rows - 3)


@pytest.mark.parametrize(("progress", "least"), [(0.0, 0.9), (1.0, 0.7)])
def test_labels_and_weights_by_hand(progress, least):
  given = predictions()
  p = special.softmax(np.asarray(given.logits, np.float64), 1)
  first = np.asarray(
    centroids.pseudo_labels(given.features, jnp.asarray(p), given.valid)
  )
  valid = np.asarray(given.valid)
  sure = valid & (first == p.argmax(1)) & (p.max(1) > least)
  f = unit(np.asarray(given.features, np.float64))
  weights = np.eye(3)[first] * sure[:, None]
  assert weights.any(0).tolist() == [True, True, False]
  weights[:, 2] = p[:, 2]  # no sure image: the soft centroid stays
  weights *= valid[:, None]
  for _ in range(2):
    cosine = f @ unit(weights.T @ f).T
    labels = cosine.argmax(1)
    weights = np.eye(3)[labels] * valid[:, None]
  w = special.softmax(cosine / 0.07, 1).max(1)
  labels = np.where(sure, first, labels)
  found = CPGA().label(given, jnp.float32(progress))
  np.testing.assert_array_equal(found.sure, sure)
  np.testing.assert_array_equal(found.classes[valid], labels[valid])
  np.testing.assert_allclose(found.weights[valid], w[valid], rtol=1e-3)


def test_more_images_are_sure_later():
  given = predictions()
  counts = [
    int(CPGA().label(given, jnp.float32(t)).sure.sum()) for t in (0.0, 0.5, 1.0)
  ]
  assert counts[0] < counts[2]
  assert counts == sorted(counts)


def test_without_a_sure_image_clustering_is_soft():
  given = predictions()
  found = CPGA(sure_first=1.0, sure_last=1.0).label(given, jnp.float32(0.0))
  assert not found.sure.any()
  assert np.isfinite(found.weights).all()
  p = jax.nn.softmax(given.logits)
  features = given.features / jnp.linalg.norm(given.features, axis=1)[:, None]
  expected = centroids.cluster(features, p, given.valid).labels
  np.testing.assert_array_equal(found.classes, expected)


def test_the_networks_loss_by_hand():
  prototypes = RNG.normal(size=(3, 1, 4)).astype(np.float32)
  bank = unit(RNG.normal(size=(10, 4))).astype(np.float32)
  f = unit(RNG.normal(size=(2, 4))).astype(np.float32)
  rows, labels = np.array([7, 2]), np.array([0, 2])
  early = special.softmax(RNG.normal(size=(10, 3)), 1).astype(np.float32)
  weights = RNG.uniform(size=10).astype(np.float32)
  classes = np.zeros(10, np.int32)
  classes[rows] = labels
  head = {
    "params": {
      "linear1": {"kernel": RNG.normal(size=(4, 4)), "bias": np.ones(4)},
      "linear2": {"kernel": RNG.normal(size=(4, 6)), "bias": np.ones(6)},
    }
  }
  state = State(
    *(None,) * 4,
    jnp.asarray(prototypes),
    Labels(jnp.asarray(classes), jnp.asarray(weights), jnp.arange(10) == 7),
    jnp.asarray(bank),
    jnp.asarray(early),
    jnp.ones(10, bool),
  )
  head = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)
  info, kept = SMALL.loss(KEY, jnp.asarray(f), head, jnp.asarray(rows), state)

  def project(x):
    one, two = (jax.device_get(head["params"][f"linear{i}"]) for i in (1, 2))
    x = np.maximum(x @ one["kernel"] + one["bias"], 0)
    return unit(x @ two["kernel"] + two["bias"])

  v = unit(prototypes[:, 0])
  log_share = special.log_softmax(project(f) @ project(v).T / 0.07, 1)
  contrast = -(weights[rows] * log_share[[0, 1], labels]).mean()
  q = special.softmax(f @ v.T / 0.07, 1)
  t = 0.9 * early[rows] + 0.1 * q
  agreement = np.log(1 - (t * q).sum(1)).mean()
  keys = bank.copy()
  keys[rows] = f
  entropies = []
  for i, row in enumerate(rows):
    odds = special.softmax(np.delete(keys, row, 0) @ f[i] / 0.05)
    entropies.append(special.entr(odds).sum())
  near = lambda x: pytest.approx(float(x), rel=1e-3)
  assert info.contrast == near(contrast)
  assert info.early_learning == near(agreement)
  assert info.neighbourhood == near(np.mean(entropies))
  assert info.loss == near(contrast + 5 * agreement + 0.05 * np.mean(entropies))
  assert info.sure == 0.5
  np.testing.assert_allclose(kept, t, rtol=1e-3, atol=1e-6)


def ready(method=SMALL):
  pixels = RNG.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
  found = make_predict_all(pixels, make_mesh(1))(SOURCE)
  begun = jax.jit(method.init)(KEY, context(RECIPE, SOURCE, found))
  images = jnp.asarray(pixels[:4], jnp.float32) / 255
  return begun, found, Batch(images, rows=jnp.arange(4))


def test_a_step_writes_its_banks_and_teaches_the_head():
  begun, _, batch = ready()
  here = context(RECIPE, SOURCE, batch=batch)
  after, _ = jax.jit(SMALL.step)(KEY, begun, here)
  assert (begun.early == 0).all()
  # From 0, a tenth of the first prediction.
  np.testing.assert_allclose(after.early[:4].sum(1), 0.1, rtol=1e-4)
  assert (after.early[4:] == 0).all()
  assert (after.features[:4] != begun.features[:4]).any()
  np.testing.assert_array_equal(after.features[4:], begun.features[4:])
  length = jnp.linalg.norm(after.features, axis=1)
  np.testing.assert_allclose(length, 1.0, rtol=1e-3)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), begun.head, after.head
  )
  assert all(jax.tree.leaves(moved))
  for before, now in zip(
    *map(jax.tree.leaves, (begun.generator, after.generator))
  ):
    np.testing.assert_array_equal(before, now)


def test_every_epoch_has_new_prototypes_of_the_same_generator():
  begun, found, _ = ready()
  here = context(RECIPE, SOURCE, found, step=5)
  again = SMALL.relabel(jax.random.key(5), begun, here)
  assert (again.prototypes != begun.prototypes).all()
  for before, now in zip(
    *map(jax.tree.leaves, (begun.generator, again.generator))
  ):
    np.testing.assert_array_equal(before, now)
