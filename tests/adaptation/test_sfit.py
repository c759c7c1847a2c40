"""SFIT's stages, what moves in each, and the translator's loss by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.adaptation.sfit import (
  ADAPT,
  FINE_TUNE,
  PRETRAIN,
  SFIT,
  TRANSLATE,
  last_map,
)
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.contracts import Batch, Predictions
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import image_prior, relation, statistics
from tests.adaptation.contexts import context
from tests.networks import spec, tiny

KEY = jax.random.key(5)
SMALL = SFIT(translator_width=4, translator_blocks=1)
RECIPE = dataclasses.replace(SFIT.recipe, steps=40, batch_size=8, lr=0.02)
IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
BATCH = Batch(IMAGES, rows=jnp.arange(8))
PREDICTIONS = Predictions(
  jax.random.normal(KEY, (8, 8)), jnp.eye(8, 10), jnp.ones(8, bool)
)
FIRST = {ADAPT: 0, PRETRAIN: 12, TRANSLATE: 16, FINE_TUNE: 28}


def start(method=SMALL):
  return method.init(KEY, context(RECIPE, tiny(), PREDICTIONS))


def with_target(state, target):
  """Return the state with another adapted network."""
  train = state.adaptation.train._replace(network=target)
  return state._replace(adaptation=state.adaptation._replace(train=train))


def at(stage):
  """Return the context of a stage's first step."""
  return context(RECIPE, tiny(), batch=BATCH, step=FIRST[stage])


@jax.jit
def one(state, here):
  return SMALL.step(KEY, state, here)


def moved(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return any((np.asarray(x) != np.asarray(y)).any() for x, y in leaves)


def test_the_stages_follow_their_shares():
  stages = [int(SMALL.stage(step / 40)) for step in range(40)]
  assert stages == [ADAPT] * 12 + [PRETRAIN] * 4 + [TRANSLATE] * 12 + (
    [FINE_TUNE] * 12
  )
  never = SFIT(adapt_share=0.0, pretrain_share=0.5, translate_share=0.5)
  assert [int(never.stage(s / 4)) for s in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("stage", FIRST)
def test_in_each_stage_one_of_the_two_moves(stage):
  state, here = start(), at(stage)
  after, info = one(state, here)
  assert info.stage == stage
  adapts = stage in (ADAPT, FINE_TUNE)
  assert moved(state.translator, after.translator) != adapts
  assert moved(state.translator_opt_state, after.translator_opt_state) != adapts
  old, new = state.adaptation.train, after.adaptation.train
  assert moved(old.network.variables, new.network.variables) == adapts
  assert moved(old.opt_state, new.opt_state) == adapts
  assert not moved(old.network.params["linear"], new.network.params["linear"])
  assert not moved(state.adaptation.labels, after.adaptation.labels)
  assert new.step == old.step + 1
  assert (info.divergence == 0.0) == adapts
  assert (info.entropy == 0.0) != adapts


def test_it_begins_as_shot_im():
  recipe = dataclasses.replace(RECIPE, steps=24)  # T's own: 0.3 + 0.3 of 40
  method = SHOT(label_weight=0.0)
  shot = method.init(KEY, context(recipe, tiny(), PREDICTIONS))
  here = context(recipe, tiny(), batch=BATCH)
  shot, expected = jax.jit(method.step)(KEY, shot, here)
  after, info = one(start(), at(ADAPT))
  assert info.loss == pytest.approx(float(expected.loss), rel=1e-5)
  for a, b in zip(
    jax.tree.leaves(shot.train.network.params),
    jax.tree.leaves(SMALL.network(after).params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_rate_of_fine_tuning_is_a_share():
  slow = dataclasses.replace(SMALL, fine_tune_rate=0.0)
  state = start(slow)
  after, info = jax.jit(slow.step)(KEY, state, at(FINE_TUNE))
  old, new = SMALL.network(state), SMALL.network(after)
  assert info.loss != 0.0
  assert not moved(old.params, new.params)
  assert moved(old.batch_stats, new.batch_stats)


def test_only_images_with_equal_decisions_count_in_fine_tuning():
  # Another target, so that the two disagree about some images.
  state = with_target(start(), tiny(seed=3))
  target, translated = tiny(seed=3), SMALL.translate(state, IMAGES)
  agree = np.asarray(
    net.logits(tiny(), translated).argmax(1)
    == net.logits(target, IMAGES).argmax(1)
  )
  p = np.asarray(jax.nn.softmax(net.train_logits(target, IMAGES, None)[0]))
  entropies = -(p * np.log(p)).sum(1)
  mean = p.mean(0)
  marginal = -(mean * np.log(mean)).sum()
  _, info = one(state, at(FINE_TUNE))
  counted = entropies[agree].mean() if agree.any() else 0.0
  assert info.agreement == pytest.approx(agree.mean())
  assert agree.mean() < 1.0
  assert info.entropy == pytest.approx(float(counted), rel=1e-3)
  assert info.loss == pytest.approx(float(counted - marginal), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_gate_by_hand(share):
  """Without any agreement the loss is that of the mean prediction."""
  counts = jnp.arange(8) < 8 * share
  state = start().adaptation
  step = jax.jit(SMALL.adapt_step)
  after, info = step(KEY, state, at(ADAPT), jnp.int32(ADAPT), counts)
  p = np.asarray(jax.nn.softmax(net.train_logits(tiny(), IMAGES, None)[0]))
  entropies = -(p * np.log(p)).sum(1)
  expected = entropies[np.asarray(counts)].mean() if share else 0.0
  assert info.entropy == pytest.approx(float(expected), rel=1e-3)
  for leaf in jax.tree.leaves((after.train.network, info)):
    assert np.isfinite(leaf).all()
  np.testing.assert_array_equal(after.labels, state.labels)


@pytest.mark.parametrize("stage", [PRETRAIN, TRANSLATE])
def test_the_translators_loss_by_hand(stage):
  method = SFIT(
    pretrain_identity_weight=0.2,
    pretrain_content_weight=0.3,
    relation_weight=0.4,
    identity_weight=0.5,
    variation_weight=0.6,
    style_weight=0.7,
  )
  source, target = tiny(), tiny(seed=3)
  made = jax.random.uniform(jax.random.key(2), IMAGES.shape)
  terms = method.translator_loss(source, target, IMAGES, made, jnp.int32(stage))
  logits, taps = net.features(source, made)
  own, own_taps = net.features(source, IMAGES)
  theirs, their_taps = net.features(target, IMAGES)
  log = lambda x: np.asarray(jax.nn.log_softmax(x), np.float64)
  kl = lambda a, b: (np.exp(log(a)) * (log(a) - log(b))).sum(1).mean()
  identity = np.abs(np.asarray(made) - np.asarray(IMAGES)).mean()
  content = np.abs(
    np.asarray(taps["stage2"]) - np.asarray(own_taps["stage2"])
  ).mean()
  if stage == PRETRAIN:
    expected = kl(own, logits) + 0.2 * identity + 0.3 * content
  else:
    _, inputs = net.statistics(source, made)
    expected = (
      kl(theirs, logits)
      + 0.4 * relation.channels(taps["stage2"], their_taps["stage2"]).mean()
      + 0.5 * identity
      + 0.6 * image_prior.total_variation_l1(made)
      + 0.7 * statistics.style(inputs, source.batch_stats)
    )
  assert terms.loss == pytest.approx(float(expected), rel=1e-4)


def test_the_last_map_is_not_a_vector():
  map_, vector = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 5))
  taps = {
    "penultimate": vector,
    "stage1": map_,
    "stage2": map_,
    "stage3": vector,
  }
  assert last_map(taps) == "stage2"


@pytest.mark.parametrize("stage", [PRETRAIN, TRANSLATE])
def test_the_translator_learns_its_stage(stage):
  """Pretraining makes it the identity, then it learns the source's style."""
  method = dataclasses.replace(SMALL, translator_lr=1e-2, translator_width=8)
  recipe = dataclasses.replace(RECIPE, steps=400)
  images = jnp.repeat(jnp.repeat(IMAGES[:, ::4, ::4], 4, axis=1), 4, axis=2)
  state = method.init(KEY, context(recipe, tiny(), PREDICTIONS))
  state = with_target(state, tiny(seed=3))
  here = context(recipe, tiny(), batch=Batch(images))

  @jax.jit
  def learn(state):
    g, opt_state, terms = method.translator_step(state, here, jnp.int32(stage))
    return state._replace(translator=g, translator_opt_state=opt_state), terms

  infos = []
  for _ in range(60):
    state, terms = learn(state)
    infos.append(terms)
  assert infos[-1].loss < 0.7 * infos[0].loss
  if stage == PRETRAIN:
    assert infos[-1].identity < 0.5 * infos[0].identity
  else:
    assert infos[-1].divergence < 0.8 * infos[0].divergence
    assert infos[-1].relation < 0.5 * infos[0].relation


def test_a_translation_is_an_image():
  translated = SMALL.translate(start(), IMAGES)
  assert translated.shape == IMAGES.shape
  assert (translated >= 0.0).all() and (translated <= 1.0).all()


def test_shares_above_one_are_refused():
  with pytest.raises(UsageError, match="--translate-share are 1.2 together"):
    start(SFIT(adapt_share=0.6, pretrain_share=0.3, translate_share=0.3))


def test_the_style_needs_batch_norm():
  plain = net.init(KEY, models.build("lenet5", 10), spec(28))
  with pytest.raises(UsageError, match="LeNet5 has no BatchNorm"):
    SFIT(style_weight=1.0).init(KEY, context(RECIPE, plain, PREDICTIONS))
