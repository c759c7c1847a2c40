"""3C-GAN's losses by hand, its moves, and what the generator learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.adaptation import gan_3c
from dfkt_jax.adaptation.gan_3c import GAN3C
from dfkt_jax.contracts import Batch
from dfkt_jax.errors import UsageError
from dfkt_jax.models import generator, spectral
from tests.adaptation.contexts import context
from tests.networks import spec, tiny

KEY = jax.random.key(5)
SMALL = GAN3C(latent=8, generator_widths=(8, 8), discriminator_widths=(4,))
RECIPE = dataclasses.replace(GAN3C.recipe, steps=40, lr=0.02)
IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
BATCH = Batch(IMAGES, rows=jnp.arange(8))
HERE = context(RECIPE, tiny(), batch=BATCH)


def start(method=SMALL):
  return jax.jit(method.init)(KEY, context(RECIPE, tiny()))


STEP = jax.jit(SMALL.step)


def one(state, here=HERE):
  return STEP(KEY, state, here)


def same(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all((np.asarray(x) == np.asarray(y)).all() for x, y in leaves)


def test_the_classifiers_loss_by_hand():
  logits, made = np.random.default_rng(0).normal(size=(2, 4, 3))
  labels = np.array([0, 2, 1, 1])
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  log_made = made - np.log(np.exp(made).sum(1, keepdims=True))
  entropy = -(np.exp(log_p) * log_p).sum(1).mean()
  cross_entropy = -log_made[np.arange(4), labels].mean()
  method = GAN3C(
    label_weight=0.7,
    source_weight=0.2,
    clustering_weight=0.3,
    diversity_weight=0.4,
  )
  info = method.loss(
    jnp.asarray(logits),
    jnp.asarray(made),
    jnp.asarray(labels),
    jnp.float32(5.0),
    jnp.float32(2.0),
  )
  mean = np.exp(log_p).mean(0)
  marginal = -(mean * np.log(mean)).sum()
  expected = 0.7 * cross_entropy + 0.2 * 5.0 + 0.3 * (entropy + 2.0)
  assert info.loss == pytest.approx(float(expected - 0.4 * marginal), rel=1e-4)


def test_the_distance_is_over_all_weights():
  a = {"x": jnp.array([1.0, 2.0]), "y": {"z": jnp.ones((2, 2))}}
  b = {"x": jnp.array([0.0, 4.0]), "y": {"z": jnp.full((2, 2), 1.5)}}
  assert gan_3c.squared_distance(a, b) == pytest.approx(1 + 4 + 4 * 0.25)


def test_the_terms_are_those_of_the_networks():
  state = start()
  after, info = one(state)
  # The classifier is still the source.
  logits, _ = net.train_logits(tiny(), IMAGES, None)
  log_p = np.asarray(jax.nn.log_softmax(logits))
  entropy = -(np.exp(log_p) * log_p).sum(1).mean()
  assert info.entropy == pytest.approx(float(entropy), rel=1e-4)
  assert info.distance == 0.0
  # An untrained G makes nearly the same gray images for all z.
  gray = SMALL.generate(KEY, state, jnp.zeros(8, jnp.int32))
  real = spectral.logits(state.discriminator, IMAGES)
  made = spectral.logits(state.discriminator, gray)
  about = np.logaddexp(0, -real).mean() + np.logaddexp(0, made).mean()
  assert info.discriminator == pytest.approx(float(about), rel=0.05)
  assert info.smoothness > 0.0
  _, info = one(after)
  assert info.distance == pytest.approx(
    float(
      gan_3c.squared_distance(
        after.train.network.params, state.train.network.params
      )
    ),
    rel=1e-4,
  )


def test_all_three_move():
  state = start()
  after, _ = one(state)
  for name in ("generator", "discriminator"):
    before, now = getattr(state, name), getattr(after, name)
    for a, b in zip(
      jax.tree.leaves(before.params), jax.tree.leaves(now.params), strict=True
    ):
      assert (np.asarray(a) != np.asarray(b)).any()
  assert not same(state.discriminator.spectral, after.discriminator.spectral)
  assert not same(state.train.network, after.train.network)


def test_without_a_rate_only_the_classifier_moves():
  frozen = dataclasses.replace(SMALL, adversary_lr=0.0)
  state = start(frozen)
  after, _ = jax.jit(lambda s: frozen.step(KEY, s, HERE))(state)
  assert same(state.generator, after.generator)
  assert same(state.discriminator.params, after.discriminator.params)
  assert not same(state.train.network.params, after.train.network.params)


def test_each_player_lowers_its_own_loss():
  method = dataclasses.replace(SMALL, adversary_lr=1e-3)
  state = start(method)
  labels = jnp.arange(8) % 10
  z = method.condition(KEY, labels, 10)
  predict = lambda x: net.train_logits(tiny(), x, None)[0]

  @jax.jit
  def both(state):
    made = generator.generate(state.generator, z)
    d = method.discriminator_step(state, IMAGES, made)
    g = method.generator_step(state, z, labels, state.discriminator, predict)
    return d, g

  (d, d_opt_state, _), (g, g_opt_state, _, _) = both(state)
  # The opponent stays.
  (_, _, d_first), (_, _, g_first, _) = both(state)
  (_, _, d_second), _ = both(
    state._replace(discriminator=d, discriminator_opt_state=d_opt_state)
  )
  _, (_, _, g_second, _) = both(
    state._replace(generator=g, generator_opt_state=g_opt_state)
  )
  assert d_second < d_first - 1e-4
  assert g_second < g_first - 1e-4


def test_the_generator_learns_the_classes():
  method = dataclasses.replace(SMALL, adversary_lr=5e-3, guidance_weight=10.0)
  state, labels = start(method), jnp.arange(40) % 10
  source = tiny()

  def right(state):
    made = method.generate(jax.random.key(9), state, labels)
    logits, _ = net.train_logits(source, made, None)
    return (logits.argmax(1) == labels).mean()

  @jax.jit
  def learn(key, state):
    labels = jax.random.randint(key, (40,), 0, 10)
    g, opt_state, _, _ = method.generator_step(
      state,
      method.condition(key, labels, 10),
      labels,
      state.discriminator,
      lambda x: net.train_logits(source, x, None)[0],
    )
    return state._replace(generator=g, generator_opt_state=opt_state)

  assert right(state) < 0.3
  for index in range(150):
    state = learn(jax.random.fold_in(KEY, index), state)
  assert right(state) > 0.6


def test_a_heavy_weight_keeps_the_classifier_near_the_source():
  distances = []
  for weight in (0.0, 5.0):
    method = dataclasses.replace(SMALL, source_weight=weight)
    step = jax.jit(lambda s, m=method: m.step(KEY, s, HERE))
    state = start(method)
    for _ in range(8):
      state, _ = step(state)
    distances.append(
      gan_3c.squared_distance(state.train.network.params, tiny().params)
    )
  assert distances[1] < 0.5 * distances[0]


def test_images_without_content_have_finite_gradients():
  state = start()
  for value in (0.0, 1.0):
    batch = BATCH._replace(images=jnp.full_like(IMAGES, value))
    after, info = one(state, HERE._replace(batch=batch))
    for leaf in jax.tree.leaves((after, info)):
      assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
  ("size", "channels", "widths"), [(16, 1, (8, 8, 4)), (32, 3, (8, 8, 8, 4))]
)
def test_it_makes_images_of_every_shape(size, channels, widths):
  method = dataclasses.replace(SMALL, generator_widths=widths)
  source = tiny(input_spec=spec(size, channels))
  state = jax.eval_shape(lambda: method.init(KEY, context(RECIPE, source)))
  labels = jax.ShapeDtypeStruct((3,), jnp.int32)
  make = lambda state, labels: method.generate(KEY, state, labels)
  images = jax.eval_shape(make, state, labels)
  assert images.shape == (3, size, size, channels)


def test_networks_that_do_not_fit_are_refused():
  odd = tiny(input_spec=spec(10))
  with pytest.raises(UsageError, match="--generator-widths"):
    GAN3C().init(KEY, context(RECIPE, odd))
  deep = dataclasses.replace(SMALL, discriminator_widths=(4,) * 4)
  with pytest.raises(UsageError, match="--discriminator-widths"):
    deep.init(KEY, context(RECIPE, tiny()))
