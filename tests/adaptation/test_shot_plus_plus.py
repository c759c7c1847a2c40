"""SHOT++: its three stages, the split between them, and MixMatch's loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import augment, tails
from dfkt_jax import network as net
from dfkt_jax.adaptation import shot_plus_plus as spp
from dfkt_jax.adaptation.contract import Answers, Batch
from dfkt_jax.adaptation.course import CLASSIFIER, Course
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus, Split
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec
from tests.networks import tiny

KEY = jax.random.key(5)
RNG = np.random.default_rng(4)
IMAGES = RNG.uniform(size=(12, 8, 8, 1)).astype(np.float32)


def answers_of(network):
  logits, taps = net.features(network, jnp.asarray(IMAGES))
  return Answers(taps["penultimate"], logits, jnp.ones(len(IMAGES), bool))


# The split.


def test_the_sure_are_the_lowest_entropies_of_every_class():
  logits = 3.0 * RNG.normal(size=(40, 5)).astype(np.float32)
  logits[:, 4] -= 100.0  # nobody's class
  valid = np.arange(40) < 37
  found = jax.jit(spp.split)(
    Answers(jnp.zeros((40, 2)), jnp.asarray(logits), jnp.asarray(valid))
  )
  p = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64)
  p /= p.sum(1, keepdims=True)
  entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
  share = (entropy[:37] < entropy[:37].mean()).mean()
  expected = np.zeros(40, bool)
  for k in range(4):
    rows = [i for i in range(37) if p[i].argmax() == k]
    rows.sort(key=lambda i: entropy[i])
    expected[rows[: int(np.ceil(share * len(rows)))]] = True
  np.testing.assert_array_equal(found.sure, expected)
  np.testing.assert_array_equal(found.labels[:37], p[:37].argmax(1))
  assert 0 < expected.sum() < 37


def test_a_split_of_equals_has_no_sure_image():
  same = Answers(jnp.zeros((6, 2)), jnp.ones((6, 3)), jnp.ones(6, bool))
  assert not np.asarray(spp.split(same).sure).any()


# MixMatch.

LOGITS = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
P = np.asarray(jax.nn.softmax(LOGITS), np.float64)


def test_targets_are_labels_or_sharpened_means():
  others = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
  sure = jnp.array([True, False, True, False])
  mine = Split(sure, jnp.array([2, 0, 1, 0]))
  found = SHOTPlusPlus(sharpening_temperature=0.5).targets(
    mine, [LOGITS, others]
  )
  mean = (P + np.asarray(jax.nn.softmax(others), np.float64)) / 2
  sharp = mean**2 / (mean**2).sum(1, keepdims=True)
  expected = np.where(np.asarray(sure)[:, None], np.eye(3)[[2, 0, 1, 0]], sharp)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mixmatchs_loss_by_hand():
  targets = RNG.dirichlet(np.ones(3), size=4)
  sure = jnp.array([True, False, False, True])
  method = SHOTPlusPlus(unlabelled_weight=100.0)
  found = method.mixing_loss(
    LOGITS, jnp.asarray(targets, jnp.float32), sure, jnp.float32(0.3)
  )
  labelled = -(targets * np.log(P)).sum(1)[[0, 3]].mean()
  unlabelled = ((P - targets) ** 2)[[1, 2]].mean()
  assert found.labelled == pytest.approx(labelled, rel=1e-4)
  assert found.unlabelled == pytest.approx(unlabelled, rel=1e-4)
  assert found.loss == pytest.approx(labelled + 30.0 * unlabelled, rel=1e-4)


@pytest.mark.parametrize("sure", [True, False])
def test_a_batch_of_one_kind_has_a_finite_gradient(sure):
  loss = lambda logits: SHOTPlusPlus().mixing_loss(
    logits, jnp.eye(3)[jnp.array([0, 1, 2, 0])], jnp.full(4, sure), 1.0
  )
  found = loss(100.0 * LOGITS)
  assert float(found.unlabelled if sure else found.labelled) == 0.0
  gradient = jax.grad(lambda logits: loss(logits).loss)(100.0 * LOGITS)
  assert np.isfinite(np.asarray(gradient)).all()


def test_the_rotation_head_by_hand():
  plain, turned = RNG.normal(size=(2, 5, 3)).astype(np.float32)
  kernel = RNG.normal(size=(6, 4)).astype(np.float32)
  head = {"kernel": jnp.asarray(kernel), "bias": jnp.array([0.1, 0.2, 0.3, 0])}
  turns = jnp.array([0, 3, 1, 2, 2])
  loss = lambda pair: spp._rotation(head, pair, turns)
  scores = np.concatenate([plain, turned], 1) @ kernel + np.asarray(
    head["bias"]
  )
  scores = np.asarray(scores, np.float64)
  log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
  pair = [jnp.asarray(plain), jnp.asarray(turned)]
  expected = -log_p[np.arange(5), turns].mean()
  assert loss(pair) == pytest.approx(expected, rel=1e-4)
  gradients = jax.grad(loss)(pair)
  assert not np.asarray(gradients[0]).any()
  assert np.asarray(gradients[1]).any()


# Stages: two steps of each.

METHOD = SHOTPlusPlus(
  head_share=1 / 3, transfer_share=1 / 3, unlabelled_weight=10.0
)
COURSE = dataclasses.replace(
  SHOTPlusPlus.course, steps=6, batch_size=8, lr=0.05
)


@functools.cache
def history():
  """States and infos before and after every step."""
  source = tiny()
  state = jax.jit(METHOD.init, static_argnums=3)(
    KEY, source, answers_of(source), COURSE
  )
  step = jax.jit(METHOD.step, static_argnums=3)
  states, infos = [state], []
  for index in range(6):
    rows = jnp.arange(8) + index % 4
    batch = Batch(jnp.asarray(IMAGES)[rows], rows)
    state, info = step(jax.random.fold_in(KEY, index), state, batch, COURSE)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


def moved(before, after):
  """Which parts of the network have another parameter or statistic."""
  found = set()
  old, new = METHOD.network(before), METHOD.network(after)
  for part, a, b in zip(
    jax.tree.leaves(tails.parts(old)),
    jax.tree.leaves(old.params),
    jax.tree.leaves(new.params),
  ):
    if (np.asarray(a) != np.asarray(b)).any():
      found.add(part)
  for a, b in zip(*map(jax.tree.leaves, (old.batch_stats, new.batch_stats))):
    if (np.asarray(a) != np.asarray(b)).any():
      found.add("statistics")
  return found


def head_moved(before, after):
  return (np.asarray(before.head["kernel"]) != after.head["kernel"]).any()


def test_stages_train_what_they_should():
  states, infos = history()
  assert [int(i.stage) for i in infos] == [0, 0, 1, 1, 2, 2]
  changes = [moved(*pair) for pair in zip(states, states[1:])]
  assert changes[0] == changes[1] == set()
  assert changes[2] == changes[3] == {"backbone", "statistics"}
  assert changes[5] == {"backbone", CLASSIFIER, "statistics"}
  heads = [head_moved(*pair) for pair in zip(states, states[1:])]
  assert heads == [True] * 4 + [False] * 2
  assert [int(s.shot.learner.step) for s in states] == list(range(7))


def test_every_stage_has_its_loss():
  _, infos = history()
  for info in infos[:2]:
    assert info.loss == info.rotation > 0.0
    assert info.cross_entropy == info.entropy == info.unlabelled == 0.0
  for info in infos[2:4]:
    expected = (
      0.3 * info.cross_entropy
      + info.entropy
      - info.marginal_entropy
      + 0.6 * info.rotation
    )
    assert info.loss == pytest.approx(expected, rel=1e-4)
    assert info.rotation > 0.0
  # Of the ramp: nothing at the stage's first step, half at its second.
  for info, done in zip(infos[4:], (0.0, 0.5)):
    expected = info.cross_entropy + 10.0 * done * info.unlabelled
    assert info.loss == pytest.approx(expected, rel=1e-4)
    assert info.unlabelled > 0.0
    assert info.rotation == info.entropy == 0.0


def test_the_last_stage_begins_with_a_fresh_classifier_and_rate():
  states, _ = history()
  network = METHOD.network(states[4])
  # A rate of nothing shows what the classifier is before the step.
  still = dataclasses.replace(COURSE, lr=0.0)
  key, rows = jax.random.fold_in(KEY, 4), jnp.arange(8)
  batch = Batch(jnp.asarray(IMAGES)[rows], rows)
  after, _ = METHOD.step(key, states[4], batch, still)
  new = METHOD.network(after)
  assert moved(states[4], after) == {CLASSIFIER, "statistics"}
  drawn = np.asarray(new.params["linear"]["kernel"])
  old = np.asarray(network.params["linear"]["kernel"])
  # Our tiny network's own is five times as large as one that is drawn.
  assert drawn.std() < 0.5 * old.std()
  counts = [
    int(leaf)
    for leaf in jax.tree.leaves(after.shot.learner.opt_state)
    if leaf.dtype == jnp.int32
  ]
  assert counts
  assert set(counts) == {1}


def test_the_split_is_kept_once_the_last_stage_has_begun():
  states, _ = history()
  other = Answers(
    jnp.ones((12, 8)),
    jnp.asarray(RNG.normal(size=(12, 10)), jnp.float32),
    jnp.ones(12, bool),
  )
  fresh = spp.split(other)
  for step, renewed in ((0, True), (2, True), (4, True), (5, False)):
    state = METHOD.relabel(KEY, states[step], other, COURSE)
    expected = fresh if renewed else states[step].split
    for a, b in zip(state.split, expected):
      np.testing.assert_array_equal(a, b)
  assert (np.asarray(fresh.labels) != states[5].split.labels).any()


def test_all_stages_can_be_left_out():
  for head, transfer, expected in ((0, 0, 1), (1, 0, 0), (0, 1, 2)):
    method = SHOTPlusPlus(
      head_share=float(head), transfer_share=float(transfer)
    )
    learner = COURSE.init(tiny())
    stages = {
      int(method.stage(learner._replace(step=jnp.int32(t)), COURSE))
      for t in range(6)
    }
    assert stages == {expected}


def test_pictures_are_turned_before_the_second_pass(monkeypatch):
  seen = []
  monkeypatch.setattr(
    augment,
    "quarter_turns",
    lambda images, turns: seen.append(np.asarray(turns)) or 0.0 * images,
  )
  states, infos = history()
  key, rows = jax.random.fold_in(KEY, 0), jnp.arange(8)
  batch = Batch(jnp.asarray(IMAGES)[rows], rows)
  _, info = METHOD.step(key, states[0], batch, COURSE)
  assert len(seen) == 1
  assert set(seen[0]) <= {0, 1, 2, 3}
  assert len(set(seen[0])) > 1
  # It makes a difference what comes out of it.
  assert abs(info.loss - infos[0].loss) > 1e-3


def test_refusals():
  source = tiny()
  answers = answers_of(source)
  with pytest.raises(UsageError, match="--head-share 0.6 and --transfer-share"):
    SHOTPlusPlus(head_share=0.6, transfer_share=0.5).init(
      KEY, source, answers, COURSE
    )
  wide = source.replace(spec=InputSpec(8, 10, 1, (0.4,), (0.3,), 10))
  with pytest.raises(UsageError, match="8x10"):
    SHOTPlusPlus().init(KEY, wide, answers, Course(steps=6))
