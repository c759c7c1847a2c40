"""Every method of adaptation: its loss by hand, and what all must do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models, parallel, placement
from dfkt_jax import network as net
from dfkt_jax.adaptation import ada_bn, nrc
from dfkt_jax.adaptation.aad import AaD
from dfkt_jax.adaptation.ada_bn import AdaBN
from dfkt_jax.adaptation.ada_contrast import AdaContrast
from dfkt_jax.adaptation.answers import make_look
from dfkt_jax.adaptation.contract import Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.adaptation.cowa import CoWA
from dfkt_jax.adaptation.cpga import CPGA
from dfkt_jax.adaptation.gan_3c import GAN3C
from dfkt_jax.adaptation.nrc import NRC
from dfkt_jax.adaptation.sfda_de import SFDADE
from dfkt_jax.adaptation.sfit import SFIT
from dfkt_jax.adaptation.shot import SHOT, UNKNOWN
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus
from dfkt_jax.adaptation.tent import Tent
from dfkt_jax.errors import UsageError
from dfkt_jax.methods import ADAPTERS
from tests.networks import spec, tiny

KEY = jax.random.key(3)
PIXELS = np.random.default_rng(0).integers(
  0, 256, (32, 8, 8, 1), dtype=np.uint8
)
COURSE = Course(steps=40, batch_size=8, lr=0.02)
METHODS = {name: method() for name, method in ADAPTERS.items()}
# Where the defaults are too large for small networks, or begin with a stage in
# which the network stays as it is.
METHODS["3c-gan"] = GAN3C(
  latent=8, generator_widths=(8, 8), discriminator_widths=(4,)
)
METHODS["ada-contrast"] = AdaContrast(queue_size=32, neighbours=3)
METHODS["cowa"] = CoWA(epsilon=1e-2)
METHODS["cpga"] = CPGA(
  generator_steps=5, generator_batch_size=16, generator_width=8, latent=4
)
METHODS["sfda-de"] = SFDADE(minimum_images=1, norm_rate=1.0)
METHODS["sfit"] = SFIT(translator_width=4, translator_blocks=1)
METHODS["shot++"] = SHOTPlusPlus(
  head_share=0.0, transfer_share=1.0, unlabelled_weight=1.0
)


def course_of(method):
  return dataclasses.replace(
    getattr(method, "course", Course()), steps=40, batch_size=8, lr=0.02
  )


@functools.cache
def programs(method, devices):
  """init, step and relabel, compiled once for all tests of a method."""
  relabel = getattr(method, "relabel", None)
  return (
    jax.jit(method.init, static_argnums=3),
    jax.jit(method.step, static_argnums=3, donate_argnums=1),
    relabel and jax.jit(relabel, static_argnums=3),
  )


@functools.cache
def run(method, steps, devices=1, same_batch=False):
  """The state after some steps, and the infos, on so many devices."""
  course = course_of(method)
  init, step, relabel = programs(method, devices)
  mesh = parallel.make_mesh(devices)
  with jax.set_mesh(mesh):
    source = placement.place(tiny(), mesh)
    look = make_look(PIXELS, mesh)
    answers = look(source)
    state = init(KEY, source, answers, course)
    infos = []
    for index in range(steps):
      start = 0 if same_batch else 8 * index % 32
      rows = np.arange(start, start + 8, dtype=np.int32)
      images = jnp.asarray(PIXELS[rows], jnp.float32) / 255
      batch = Batch(parallel.split(images), jnp.asarray(rows))
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, batch, course)
      infos.append(jax.device_get(info))
      if relabel and index % 4 == 3:
        answers = look(method.network(state))
        state = relabel(key, state, answers, course)
    return jax.device_get(method.network(state)), infos


@pytest.mark.parametrize("name", METHODS)
def test_one_device_equals_eight(name):
  one, infos = run(METHODS[name], 6)
  eight, others = run(METHODS[name], 6, devices=8)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(infos, others, rtol=2e-3, atol=2e-4)


# CoWA's weights grow with every relabelling: its own test holds them.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ada-bn", "cowa"}))
def test_steps_decrease_the_loss(name):
  _, infos = run(METHODS[name], 12, same_batch=True)
  first, last = (
    np.mean([i[0] for i in part]) for part in (infos[:2], infos[-2:])
  )
  assert last < first - 1e-3


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ada-bn"}))
def test_only_what_is_meant_to_moves(name):
  method = METHODS[name]
  before, (after, _) = tiny(), run(method, 6)
  parts = course_of(method).parts(before)
  rates = {"classifier": course_of(method).classifier_rate, "frozen": 0.0}
  moved = set()
  for part, old, new in zip(
    jax.tree.leaves(parts),
    jax.tree.leaves(before.params),
    jax.tree.leaves(after.params),
  ):
    if (np.asarray(old) != np.asarray(new)).any():
      moved.add(part)
  expected = {p for p in jax.tree.leaves(parts) if rates.get(p, 1.0)}
  assert moved == expected
  assert moved


# Losses.

LOGITS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
P = np.asarray(jax.nn.softmax(LOGITS), np.float64)


def mutual_information(p):
  mean = p.mean(0)
  entropy = -(p * np.log(p)).sum(1).mean()
  return entropy, -(mean * np.log(mean)).sum()


def test_shots_loss_by_hand():
  labels = jnp.array([0, 2, 2, 1])
  entropy, marginal = mutual_information(P)
  cross_entropy = -np.log(P[np.arange(4), np.asarray(labels)]).mean()
  info = SHOT(label_weight=0.3).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == pytest.approx(
    0.3 * cross_entropy + entropy - marginal, rel=1e-4
  )
  im = SHOT(label_weight=0.0).loss(LOGITS, labels, jnp.int32(0))
  assert im.loss == pytest.approx(entropy - marginal, rel=1e-4)
  partial = SHOT(diversity_weight=0.0).loss(LOGITS, labels, jnp.int32(0))
  assert partial.loss == pytest.approx(0.3 * cross_entropy + entropy, rel=1e-4)


def test_shots_labels_wait_for_the_warmup():
  method, labels = SHOT(label_warmup=1), jnp.array([0, 2, 2, 1])
  early = method.loss(LOGITS, labels, jnp.int32(0)).loss
  late = method.loss(LOGITS, labels, jnp.int32(1)).loss
  assert late == pytest.approx(float(SHOT().loss(LOGITS, labels, 0).loss))
  assert early == pytest.approx(
    float(SHOT(label_weight=0.0).loss(LOGITS, labels, 0).loss)
  )


def test_shot_leaves_unknown_images_out_of_all_but_the_mean():
  labels = jnp.array([0, UNKNOWN, 2, UNKNOWN])
  known = np.array([0, 2])
  entropy, _ = mutual_information(P[known])
  _, marginal = mutual_information(P)
  cross_entropy = -np.log(P[known, [0, 2]]).mean()
  info = SHOT(open_set=True).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == pytest.approx(
    0.3 * cross_entropy + entropy - marginal, rel=1e-4
  )


BANK = np.random.default_rng(2).normal(size=(10, 4)).astype(np.float32)
BANK /= np.linalg.norm(BANK, axis=1, keepdims=True)
PREDICTIONS = np.asarray(
  jax.nn.softmax(np.random.default_rng(3).normal(size=(10, 3))), np.float64
)
ROWS = np.array([1, 4, 9, 0])


def banks_state():
  return nrc.State(
    None,
    jnp.asarray(BANK),
    jnp.asarray(PREDICTIONS, jnp.float32),
    jnp.ones(10, bool),
  )


def neighbours(row, count):
  similarity = BANK @ BANK[row]
  similarity[row] = -np.inf
  return np.argsort(-similarity)[:count]


@pytest.mark.parametrize("weights", ["paper", "released"])
def test_nrcs_loss_and_gradient_by_hand(weights):
  method = NRC(neighbours=3, expanded_neighbours=2, weights=weights)
  _, marginal = mutual_information(P)
  near = further = 0.0
  d_p = np.zeros((4, 3))
  for i, row in enumerate(ROWS):
    for k in neighbours(row, 3):
      expanded = neighbours(k, 2)
      mutual = row in expanded and weights == "paper"
      affinity = 1.0 if mutual else 0.1
      near -= affinity * P[i] @ PREDICTIONS[k] / 4
      d_p[i] -= affinity * PREDICTIONS[k] / 4
      for m in expanded:
        further -= 0.1 * P[i] @ PREDICTIONS[m] / 4
        d_p[i] -= 0.1 * PREDICTIONS[m] / 4
  loss = lambda logits: method.loss(logits, jnp.asarray(ROWS), banks_state())
  info = loss(LOGITS)
  assert info.neighbours == pytest.approx(near, rel=1e-4)
  assert info.expanded == pytest.approx(further, rel=1e-4)
  assert info.loss == pytest.approx(near + further - marginal, rel=1e-4)
  d_p += (np.log(P.mean(0)) + 1) / 4
  expected = P * (d_p - (P * d_p).sum(1, keepdims=True))
  gradient = jax.grad(lambda logits: loss(logits).loss)(LOGITS)
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_aads_loss_and_gradient_by_hand():
  method = AaD(neighbours=3, dispersion_weight=2.0, dispersion_decay=1.5)
  attraction, d_p = 0.0, np.zeros((4, 3))
  for i, row in enumerate(ROWS):
    for k in neighbours(row, 3):
      attraction -= P[i] @ PREDICTIONS[k] / 4
      d_p[i] -= PREDICTIONS[k] / 4
  weight = 2.0 * (1 + 10 * 0.3) ** -1.5
  others = P.sum(0) - P
  dispersion = (P * others).sum() / 4
  # Through both factors: every pair is counted twice.
  d_p += weight * 2 * others / 4
  loss = lambda logits: method.loss(
    logits, jnp.asarray(ROWS), banks_state(), jnp.float32(0.3)
  )
  info = loss(LOGITS)
  assert info.dispersion == pytest.approx(dispersion, rel=1e-4)
  assert info.loss == pytest.approx(attraction + weight * dispersion, rel=1e-4)
  expected = P * (d_p - (P * d_p).sum(1, keepdims=True))
  gradient = jax.grad(lambda logits: loss(logits).loss)(LOGITS)
  np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_batch_is_written_to_the_banks():
  features = 3.0 * jnp.ones((4, 4))
  state = nrc.write(banks_state(), jnp.asarray(ROWS), features, LOGITS)
  np.testing.assert_allclose(state.features[ROWS], 0.5, rtol=1e-5)
  np.testing.assert_allclose(state.predictions[ROWS], P, rtol=1e-5)
  np.testing.assert_array_equal(state.features[2], BANK[2])


@pytest.mark.parametrize("method", [NRC(), AaD()])
def test_neighbours_are_looked_for_with_nothing_dropped(method):
  source = net.init(KEY, models.build("shot-lenet", 10), spec(28))
  pixels = np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), np.uint8)
  mesh = parallel.make_mesh(1)
  with jax.set_mesh(mesh):
    state = method.init(KEY, source, make_look(pixels, mesh)(source), COURSE)
    batch = Batch(jnp.asarray(pixels, jnp.float32) / 255, jnp.arange(8))
    states = [
      method.step(jax.random.key(seed), state, batch, COURSE)[0]
      for seed in (0, 1)
    ]
  one, other = (state.features for state in states)
  np.testing.assert_array_equal(one, other)


def test_shot_leaves_a_batch_of_unknown_images_alone():
  labels = jnp.full(4, UNKNOWN)
  info = SHOT(open_set=True).loss(LOGITS, labels, jnp.int32(0))
  assert info.loss == 0.0


# BatchNorm.


def test_ada_bn_has_the_moments_of_the_target():
  adapted, _ = run(AdaBN(), 4)
  seen = net.batch_statistics
  first = tiny().spec.normalise(jnp.asarray(PIXELS, jnp.float32) / 255)
  x = jax.lax.conv_general_dilated(
    first,
    tiny().params["conv1"]["kernel"],
    (1, 1),
    [(1, 1)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  stats = adapted.batch_stats["bn1"]
  # Every image was seen once: the first layer's moments are exact.
  np.testing.assert_allclose(stats["mean"], x.mean((0, 1, 2)), atol=1e-4)
  np.testing.assert_allclose(stats["var"], x.var((0, 1, 2)), rtol=1e-3)
  whole = seen(tiny(), jnp.asarray(PIXELS, jnp.float32) / 255)
  np.testing.assert_allclose(whole["bn1"]["mean"], stats["mean"], atol=1e-4)


def test_drift_is_in_the_sources_deviations():
  source = tiny()
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x, v: (
      x + 2.0 * jnp.sqrt(v + 1e-5) if path[-1].key == "mean" else x
    ),
    source.batch_stats,
    {
      name: {"mean": stats["var"], "var": stats["var"]}
      for name, stats in source.batch_stats.items()
    },
  )
  adapted = source.replace(variables={**source.variables, "batch_stats": moved})
  assert ada_bn.drift(source, adapted) == pytest.approx(2.0, rel=1e-4)


def test_tent_predicts_before_it_updates_and_once():
  method, course = Tent(), course_of(Tent())
  source = tiny()
  answers = make_look(PIXELS, parallel.make_mesh(1))(source)
  state = method.init(KEY, source, answers, course)
  rows = jnp.arange(8)
  images = jnp.asarray(PIXELS[:8], jnp.float32) / 255
  expected, _ = net.train_logits(source, images, None)
  state, info = method.step(KEY, state, Batch(images, rows), course)
  np.testing.assert_array_equal(state.decisions[:8], expected.argmax(1))
  assert (state.decisions[8:] == -1).all()
  noise = jax.random.uniform(KEY, images.shape)
  again, _ = method.step(KEY, state, Batch(noise, rows), course)
  np.testing.assert_array_equal(again.decisions, state.decisions)


def test_tents_episodes_begin_with_the_source():
  method = Tent(episodic=True)
  after, _ = run(method, 3)
  for a, b in zip(jax.tree.leaves(tiny()), jax.tree.leaves(after)):
    np.testing.assert_array_equal(a, b)
  moved, _ = run(Tent(), 3)
  assert any(
    (a != b).any()
    for a, b in zip(jax.tree.leaves(tiny()), jax.tree.leaves(moved))
  )


@pytest.mark.parametrize("method", [AdaBN(), Tent()])
def test_methods_that_need_batch_norm_say_so(method):
  plain = net.init(KEY, models.build("lenet5", 10), spec(28))
  with pytest.raises(UsageError, match="LeNet5 has none"):
    method.init(KEY, plain, None, COURSE)
