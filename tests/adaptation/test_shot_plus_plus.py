"""SHOT++'s rotation head and its three stages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import augment
from dfkt_jax.adaptation import mixmatch
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus, rotation_loss
from dfkt_jax.contracts import Batch, Predictions
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Classification, InputSpec, layers
from dfkt_jax.network.layers import CLASSIFIER
from tests.adaptation.contexts import context, predict
from tests.networks import tiny

KEY = jax.random.key(5)
RNG = np.random.default_rng(4)
IMAGES = jnp.asarray(RNG.uniform(size=(12, 8, 8, 1)), jnp.float32)


def test_the_rotation_head_by_hand():
  plain, turned = RNG.normal(size=(2, 5, 3)).astype(np.float32)
  kernel = RNG.normal(size=(6, 4)).astype(np.float32)
  head = {"kernel": jnp.asarray(kernel), "bias": jnp.array([0.1, 0.2, 0.3, 0])}
  turns = jnp.array([0, 3, 1, 2, 2])
  loss = lambda pair: rotation_loss(head, pair, turns)
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


# Stages of two steps each.

METHOD = SHOTPlusPlus(
  head_share=1 / 3, transfer_share=1 / 3, unlabelled_weight=10.0
)
RECIPE = dataclasses.replace(
  SHOTPlusPlus.recipe, steps=6, batch_size=8, lr=0.05
)


def at(step, recipe=RECIPE, first=0):
  """Return the context of a step on eight images from the row `first` on."""
  rows = jnp.arange(8) + first
  batch = Batch(IMAGES[rows], rows=rows)
  return context(recipe, tiny(), batch=batch, step=step)


@functools.cache
def history():
  """Return the states before and after every step, and the infos."""
  source = tiny()
  begin = context(RECIPE, source, predict(source, IMAGES))
  state = jax.jit(METHOD.init)(KEY, begin)
  step = jax.jit(METHOD.step)
  states, infos = [state], []
  for index in range(6):
    here = at(index, first=index % 4)
    state, info = step(jax.random.fold_in(KEY, index), state, here)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


def moved(before, after):
  """Return the parts of the network that differ, and "statistics"."""
  found = set()
  old, new = METHOD.network(before), METHOD.network(after)
  for part, a, b in zip(
    jax.tree.leaves(layers.parts(old)),
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
  assert [int(s.shot.train.step) for s in states] == list(range(7))


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
  # The ramp is 0 at the first step of the stage and 0.5 at its second.
  for info, done in zip(infos[4:], (0.0, 0.5)):
    expected = info.cross_entropy + 10.0 * done * info.unlabelled
    assert info.loss == pytest.approx(expected, rel=1e-4)
    assert info.unlabelled > 0.0
    assert info.rotation == info.entropy == 0.0


def test_the_last_stage_begins_with_a_fresh_classifier_and_rate():
  states, _ = history()
  network = METHOD.network(states[4])
  # A rate of 0 shows the classifier as it is before the step.
  still = dataclasses.replace(RECIPE, lr=0.0)
  key, here = jax.random.fold_in(KEY, 4), at(4, still)
  after, _ = jax.jit(METHOD.step)(key, states[4], here)
  new = METHOD.network(after)
  assert moved(states[4], after) == {CLASSIFIER, "statistics"}
  drawn = np.asarray(new.params["linear"]["kernel"])
  old = np.asarray(network.params["linear"]["kernel"])
  # The kernel of the tiny network is five times as large as a drawn one.
  assert drawn.std() < 0.5 * old.std()
  counts = [
    int(leaf)
    for leaf in jax.tree.leaves(after.shot.train.opt_state)
    if leaf.dtype == jnp.int32
  ]
  assert counts
  assert set(counts) == {1}


def test_the_split_is_kept_once_the_last_stage_has_begun():
  states, _ = history()
  other = Predictions(
    jnp.ones((12, 8)),
    jnp.asarray(RNG.normal(size=(12, 10)), jnp.float32),
    jnp.ones(12, bool),
  )
  fresh = mixmatch.split(other, tiny().spec.task)
  for step, renewed in ((0, True), (2, True), (4, True), (5, False)):
    here = context(RECIPE, tiny(), other, step=step)
    state = METHOD.relabel(KEY, states[step], here)
    expected = fresh if renewed else states[step].split
    for a, b in zip(state.split, expected):
      np.testing.assert_array_equal(a, b)
  assert (np.asarray(fresh.labels) != states[5].split.labels).any()


def test_all_stages_can_be_left_out():
  for head, transfer, expected in ((0, 0, 1), (1, 0, 0), (0, 1, 2)):
    method = SHOTPlusPlus(
      head_share=float(head), transfer_share=float(transfer)
    )
    train = RECIPE.init(tiny())
    stages = {
      int(method.stage(train._replace(step=jnp.int32(t)), RECIPE))
      for t in range(6)
    }
    assert stages == {expected}


def test_images_are_turned_before_the_second_pass(monkeypatch):
  seen = []
  monkeypatch.setattr(
    augment,
    "quarter_turns",
    lambda images, turns: seen.append(np.asarray(turns)) or 0.0 * images,
  )
  states, infos = history()
  _, info = METHOD.step(jax.random.fold_in(KEY, 0), states[0], at(0))
  assert len(seen) == 1
  assert set(seen[0]) <= {0, 1, 2, 3}
  assert len(set(seen[0])) > 1
  # The turned images enter the loss.
  assert abs(info.loss - infos[0].loss) > 1e-3


def test_refusals():
  source = tiny()
  begin = context(RECIPE, source, predict(source, IMAGES))
  with pytest.raises(UsageError, match="--head-share 0.6 and --transfer-share"):
    SHOTPlusPlus(head_share=0.6, transfer_share=0.5).init(KEY, begin)
  wide = source.replace(
    spec=InputSpec(8, 10, 1, (0.4,), (0.3,), Classification(10))
  )
  with pytest.raises(UsageError, match="8x10"):
    SHOTPlusPlus().init(
      KEY, begin._replace(teacher=wide, recipe=Recipe(steps=6))
    )
