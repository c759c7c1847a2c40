"""DINE's black box, its memory, its loss and its stages."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax import network as net
from dfkt_jax.adaptation import dine
from dfkt_jax.adaptation.dine import DINE
from dfkt_jax.cli import dispatch
from dfkt_jax.contracts import Batch, ChangesArchitecture
from dfkt_jax.errors import UsageError
from dfkt_jax.losses.classification import kl_from_probabilities
from dfkt_jax.network.drift import batch_norm_drift
from tests.adaptation.contexts import context, predict
from tests.networks import tiny

KEY = jax.random.key(9)
RNG = np.random.default_rng(9)
IMAGES = RNG.uniform(size=(8, 8, 8, 1)).astype(np.float32)
RECIPE = dataclasses.replace(DINE.recipe, steps=100, batch_size=8)
LOGITS, MIXED = RNG.normal(size=(2, 4, 3)).astype(np.float32)


def softmax(logits):
  p = np.exp(logits.astype(np.float64))
  return p / p.sum(1, keepdims=True)


def begin(source, predictions=None):
  """Return the context of `init`."""
  if predictions is None:
    predictions = predict(source, jnp.asarray(IMAGES))
  return context(RECIPE, source, predictions)


def test_the_largest_are_kept_and_the_rest_is_even():
  p = jnp.array([[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]])
  one = [[0.5, 1 / 6, 1 / 6, 1 / 6], [0.25] * 4]
  two = [[0.5, 0.1, 0.3, 0.1], [0.25] * 4]
  np.testing.assert_allclose(dine.smooth(p, 1), one, rtol=1e-5)
  np.testing.assert_allclose(dine.smooth(p, 2), two, rtol=1e-5)
  np.testing.assert_array_equal(dine.smooth(p, 4), p)
  np.testing.assert_array_equal(dine.smooth(p, 9), p)
  sure = dine.smooth(jnp.eye(4), 1)
  np.testing.assert_array_equal(sure, np.eye(4))


def test_divergence_by_hand():
  p = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
  q = softmax(LOGITS[:2])
  expected = (-np.log(q[0, 0]) + (p[1] * np.log(p[1] / q[1])).sum()) / 2
  divergence = lambda p: kl_from_probabilities(
    jnp.asarray(p, jnp.float32), jnp.asarray(LOGITS[:2])
  ).mean()
  assert divergence(p) == pytest.approx(expected, rel=1e-4)
  assert abs(float(divergence(q))) < 1e-6


@pytest.mark.parametrize("tuning", [False, True])
def test_the_loss_by_hand(tuning):
  targets, mixed_targets = RNG.dirichlet(np.ones(3), size=(2, 4))
  p, q = softmax(LOGITS), softmax(MIXED)
  kl = lambda a, b: (a * np.log(a / b)).sum(1).mean()
  mean = p.mean(0)
  sure = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean)).sum()
  method = DINE(information_weight=0.7, mixup_weight=0.4)
  info = method.loss(
    jnp.asarray(LOGITS),
    jnp.asarray(targets, jnp.float32),
    jnp.asarray(MIXED),
    jnp.asarray(mixed_targets, jnp.float32),
    jnp.asarray(tuning),
  )
  taught = kl(targets, p) + 0.4 * kl(mixed_targets, q)
  expected = 0.7 * sure + (0.0 if tuning else taught)
  assert info.loss == pytest.approx(expected, rel=1e-4)
  assert info.distillation == pytest.approx(kl(targets, p), rel=1e-4)
  assert info.mixup == pytest.approx(kl(mixed_targets, q), rel=1e-4)


def test_no_weight_of_the_source_is_read():
  source = tiny()
  predictions = predict(source, jnp.asarray(IMAGES))
  broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), source)
  batch = Batch(jnp.asarray(IMAGES), rows=jnp.arange(8))
  method = DINE()
  step, relabel, ends = jax.jit(method.step), jax.jit(method.relabel), []
  for network in (source, broken):
    state = method.init(KEY, begin(network, predictions))
    state, info = step(KEY, state, context(RECIPE, network, batch=batch))
    state = relabel(KEY, state, context(RECIPE, network, predictions, step=1))
    ends.append((state, info))
  for a, b in zip(*map(jax.tree.leaves, ends)):
    assert np.isfinite(np.asarray(a)).all()
    np.testing.assert_array_equal(a, b)
  # It starts with fresh weights, and with the predictions of the source.
  fresh = method.network(method.init(KEY, begin(source)))
  for a, b in zip(*map(jax.tree.leaves, (fresh.params, source.params))):
    assert a.ndim == 1 or (np.asarray(a) != np.asarray(b)).all()
  logits = predictions.logits[::-1]
  other = dataclasses.replace(predictions, logits=logits)
  memory = method.init(KEY, begin(source, other)).memory
  np.testing.assert_array_equal(memory, ends[0][0].memory[::-1])


def test_the_memory_absorbs_predictions_ten_times():
  source = tiny()
  predictions = predict(source, jnp.asarray(IMAGES))
  method = DINE(tuning_share=0.25)
  state = method.init(KEY, begin(source, predictions))
  other = dataclasses.replace(
    predictions, logits=jnp.asarray(RNG.normal(size=(8, 10)), jnp.float32)
  )
  relabel = jax.jit(method.relabel)
  p, expected, changes = softmax(np.asarray(other.logits)), state.memory, []
  for done in range(1, 101):
    after = relabel(KEY, state, context(RECIPE, source, other, step=done))
    if (np.asarray(after.memory) != np.asarray(state.memory)).any():
      changes.append(done)
      expected = 0.6 * np.asarray(expected) + 0.4 * p
    state = after
  # A tenth of the 75 steps before tuning, rounded up.
  assert changes == [int(np.ceil(7.5 * k)) for k in range(1, 11)]
  np.testing.assert_allclose(state.memory, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(state.memory.sum(1), 1.0, rtol=1e-4)


def test_tuning_is_the_last_share_of_the_steps():
  source = tiny()
  method = DINE(tuning_share=0.25)
  state = method.init(KEY, begin(source))
  step = jax.jit(method.step)
  batch = Batch(jnp.asarray(IMAGES), rows=jnp.arange(8))
  for done, tuning in ((0, 0.0), (74, 0.0), (75, 1.0), (99, 1.0)):
    here = context(RECIPE, source, batch=batch, step=done)
    _, info = step(KEY, state, here)
    assert info.tuning == tuning
    expected = info.information
    expected += 0.0 if tuning else info.distillation + info.mixup
    assert info.loss == pytest.approx(float(expected), rel=1e-4)


def test_statistics_do_not_see_mixed_images():
  source = tiny()
  method = DINE()
  state = method.init(KEY, begin(source))
  batch = Batch(jnp.asarray(IMAGES), rows=jnp.arange(8))
  here = context(RECIPE, source, batch=batch)
  after, _ = jax.jit(method.step)(KEY, state, here)
  _, variables = net.train_logits(method.network(state), batch.images, KEY)
  found = method.network(after).batch_stats
  for a, b in zip(*map(jax.tree.leaves, (found, variables["batch_stats"]))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_new_network_may_have_another_architecture():
  source = tiny()
  method = DINE(arch="convnet-half+bottleneck")
  assert isinstance(method, ChangesArchitecture)
  network = method.network(method.init(KEY, begin(source)))
  assert network.module != source.module
  assert "bottleneck" in network.params
  assert batch_norm_drift(source, network) == 0.0
  with pytest.raises(UsageError, match="convnett"):
    DINE(arch="convnett").init(KEY, begin(source))


@pytest.mark.slow
def test_another_architecture_from_the_command_line(tmp_path):
  network = jax.device_get(tiny(widths=(16, 32, 64)))
  teachers.save(
    tmp_path / "s", network, teachers.describe(network, "convnet-half")
  )
  digits = data.load("digits/train")
  np.savez(tmp_path / "target", images=digits.images[:40])
  words = (
    *("adapt", "dine", "--source", tmp_path / "s", "--mesh", "data=1"),
    *("--target", f"npz:{tmp_path / 'target.npz'}", "--batch-size", "16"),
    *("--pool-cache", tmp_path / "cache", "--workdir", tmp_path / "w"),
    *("--arch", "convnet+bottleneck", "--epochs", "1"),
  )
  dispatch.main([str(word) for word in words])
  result = json.loads((tmp_path / "w" / "result.json").read_text())
  adapted, card = teachers.load(tmp_path / "w")
  assert result["arch"] == card.arch == "convnet+bottleneck"
  assert "bottleneck" in adapted.params
  images = digits.images[:8] / np.float32(255)
  assert np.isfinite(np.asarray(net.logits(adapted, images))).all()
