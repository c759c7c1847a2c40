"""Soft-target: the Gaussian of features, its soft labels and their images."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification
from dfkt_jax.models.vision_transformer import VisionTransformer
from dfkt_jax.network import layers
from dfkt_jax.synthesis import soft_target
from dfkt_jax.synthesis.shapes import shaded_shapes
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from tests.networks import spec, tiny

KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def lenet():
  return net.init(jax.random.key(0), models.build("lenet5", 10), spec(28))


def covariance_of_draws(gaussian, count=100_000):
  h = np.asarray(jax.jit(gaussian.draw, static_argnums=1)(KEY, count))
  return h.mean(0), np.cov(h, rowvar=False)


@pytest.mark.parametrize("layer", ["", "conv3", "fc2"])
def test_draws_have_the_models_covariance(lenet, layer):
  method = SoftTarget(sigma=2.0, layer=layer)
  gaussian = method.features(lenet)
  mean, covariance = covariance_of_draws(gaussian)
  order = layers.list_layers(lenet)
  named = {"": order[-2], "conv3": order[2], "fc2": order[-1]}[layer]
  # By hand: 4 cos(w_i, w_j).
  w = np.asarray(layers.kernel(lenet, named), np.float64)
  w = w.reshape(-1, w.shape[-1])
  w /= np.linalg.norm(w, axis=0)
  expected = 4.0 * w.T @ w
  # The error of the covariance of 100,000 draws is about sigma^2 / 316.
  np.testing.assert_allclose(covariance, expected, atol=0.08)
  np.testing.assert_allclose(mean, 0.0, atol=0.04)


def test_a_singular_correlation_is_drawn_cleanly(lenet):
  kernel = lenet.params["fc1"]["kernel"]
  # Each unit is there twice: half of the eigenvalues are zero.
  kernel = jnp.concatenate([kernel[:, :42], kernel[:, :42]], axis=1)
  params = {**lenet.params, "fc1": {**lenet.params["fc1"], "kernel": kernel}}
  twins = lenet.with_params(params)
  h = SoftTarget(sigma=1.0).features(twins).draw(KEY, 1000)
  assert np.isfinite(h).all()
  np.testing.assert_allclose(h[:, :42], h[:, 42:], atol=0.02)


def test_the_mean_is_zero_or_the_bias(lenet):
  layer = lenet.params["fc1"]
  params = {**lenet.params, "fc1": {**layer, "bias": layer["bias"] + 3.0}}
  moved = lenet.with_params(params)
  assert (SoftTarget().features(moved).mean == 0).all()
  np.testing.assert_allclose(
    SoftTarget(center="bias").features(moved).mean, 3.0
  )


def test_batch_norm_gives_mean_and_deviation():
  teacher = tiny()
  method = SoftTarget(moments="batch_norm")
  gaussian = method.features(teacher)
  norm = teacher.params["bn2"]
  np.testing.assert_allclose(gaussian.mean, norm["bias"])
  variance = (gaussian.factor @ gaussian.factor.T).diagonal()
  np.testing.assert_allclose(variance, norm["scale"] ** 2, rtol=1e-4)


def test_a_teacher_without_batch_norm_is_refused(lenet):
  with pytest.raises(UsageError, match="--moments weights"):
    SoftTarget(moments="batch_norm").init(KEY, Context(teacher=lenet))


def test_a_layer_with_maps_is_refused(lenet):
  with pytest.raises(UsageError, match=r"'conv1'.*conv3, fc1, fc2"):
    SoftTarget(layer="conv1").init(KEY, Context(teacher=lenet))


def test_every_class_is_the_argmax_of_some_soft_label(lenet):
  labels = jax.jit(
    lambda key, t: SoftTarget(sigma=4.0).soft_labels(key, t, 20_000)
  )(KEY, lenet)
  histogram = np.bincount(np.asarray(labels.argmax(1)), minlength=10)
  print("soft labels by top class:", histogram.tolist())  # noqa: T201
  assert (histogram > 0).all()


def test_balanced_soft_labels_are_draws_of_the_gaussian(lenet):
  plain = SoftTarget(sigma=4.0)
  method = dataclasses.replace(plain, draws=100)
  draw = jax.jit(
    lambda method, key, count: method.soft_labels(key, lenet, count),
    static_argnums=(0, 2),
  )
  labels = np.asarray(draw(method, KEY, 200))
  counts = np.bincount(labels.argmax(1), minlength=10)
  skewed = np.asarray(draw(plain, KEY, 200))
  assert set(counts) == {20}
  assert np.bincount(skewed.argmax(1), minlength=10).min() < 15
  assert len(np.unique(labels, axis=0)) == 200
  # Balancing selects among draws and does not change them.
  drawn = np.asarray(draw(plain, jax.random.split(KEY)[0], 20_000))
  distance = np.abs(labels[:, None] - drawn[None]).max(2)
  assert distance.min(1).max() < 1e-4


def test_soft_labels_stay_while_images_are_fitted(lenet):
  fitting = TargetFitting(
    image_lr=0.05, target_temperature=4.0, activation_weight=0.0
  )
  method = SoftTarget(synthesis_batch_size=16, sigma=4.0, fitting=fitting)
  state = method.init(KEY, Context(teacher=lenet))
  before = np.asarray(state.soft_labels)
  step = jax.jit(method.step)
  divergences = []
  for index in range(25):
    key = jax.random.fold_in(KEY, index)
    state, info = step(key, state, Context(teacher=lenet))
    divergences.append(float(info.divergence))
  np.testing.assert_array_equal(state.soft_labels, before)
  assert divergences[-1] < 0.8 * divergences[0]
  batch = method.sample(KEY, state, 16)
  np.testing.assert_array_equal(batch.soft_labels, before)
  np.testing.assert_array_equal(batch.labels, before.argmax(1))


def test_info_is_the_equations(lenet):
  fitting = TargetFitting(
    target_temperature=3.0,
    activation_weight=0.5,
    tv_weight=0.02,
    sum_weight=0.005,
  )
  method = SoftTarget(synthesis_batch_size=8, fitting=fitting)
  state = method.init(KEY, Context(teacher=lenet))
  _, info = jax.jit(method.step)(KEY, state, Context(teacher=lenet))
  x = np.asarray(state.images)
  logits, taps = net.features(lenet, state.images)
  divergence = classification.kl(state.soft_labels, logits, 3.0).mean()
  activation = np.abs(taps["penultimate"]).mean()
  variation = sum(np.abs(np.diff(x, axis=axis)).sum() for axis in (1, 2))
  loss = (
    divergence - 0.5 * activation + 0.02 * variation / 8 + 0.005 * x.sum() / 8
  )
  assert info.divergence == pytest.approx(float(divergence), rel=1e-4)
  assert info.loss == pytest.approx(float(loss), rel=1e-4)


def test_rescaled_images_fill_the_range(lenet):
  fitting = dataclasses.replace(TargetFitting(), pixels="rescale")
  method = SoftTarget(synthesis_batch_size=8, fitting=fitting)
  state = method.init(KEY, Context(teacher=lenet))
  state, _ = jax.jit(method.step)(KEY, state, Context(teacher=lenet))
  assert float(state.images.min()) == 0.0
  assert float(state.images.max()) == pytest.approx(1.0)


def test_cosines_are_of_incoming_weights():
  teacher = tiny()
  conv = [x for x in layers.list_layers(teacher) if not x.is_norm][-2]
  correlation = soft_target.incoming_correlation(teacher, conv)
  w = np.asarray(layers.kernel(teacher, conv)).mean((0, 1))
  i, j = w[:, 0], w[:, 1]
  expected = i @ j / np.linalg.norm(i) / np.linalg.norm(j)
  assert correlation[0, 1] == pytest.approx(float(expected), rel=1e-4)
  np.testing.assert_allclose(correlation.diagonal(), 1.0, rtol=1e-5)


def test_fitting_can_start_at_shapes(lenet):
  soft_labels = jnp.zeros((4, 10))
  state = TargetFitting(start="shapes").init(KEY, soft_labels, lenet)
  (key,) = jax.random.split(KEY, 1)
  expected = shaded_shapes(key, 4, lenet.spec.shape)
  off = np.abs(state.images[:, None] - expected[None]).max((2, 3, 4))
  assert off.min(1).max() < 1e-4


def test_the_nearest_of_many_shapes_starts(lenet):
  others = shaded_shapes(jax.random.key(9), 32, lenet.spec.shape)
  soft_labels = 20.0 * net.logits(lenet, others)
  lenet = lenet.with_params(
    {
      **lenet.params,
      "fc2": jax.tree.map(lambda w: 20.0 * w, lenet.params["fc2"]),
    }
  )

  def divergence(candidates):
    fitting = TargetFitting(
      start="shapes", candidates=candidates, target_temperature=4.0
    )
    images = jax.jit(fitting.init)(KEY, soft_labels, lenet).images
    logits = net.logits(lenet, images)
    return float(classification.kl(soft_labels, logits, 4.0).mean())

  one, many = divergence(1), divergence(20)
  assert many < 0.5 * one


@pytest.fixture(scope="module")
def transformer():
  module = VisionTransformer(10, width=8, depth=1, heads=2, patch=4)
  network = net.init(jax.random.key(3), module, spec())
  # Large weights spread the logits as training does.
  params = jax.tree.map(lambda w: 5.0 * w, network.params)
  return network.with_params(params)


def test_a_layer_of_tokens_has_the_cosines_of_its_weights(transformer):
  *_, layer, _ = layers.list_layers(transformer)
  assert layer.path == ("block0", "fc2")
  assert layer.shape == (5, 8)
  w = np.asarray(layers.kernel(transformer, layer), np.float64)
  assert w.shape == (32, 8)
  w /= np.linalg.norm(w, axis=0)
  gaussian = SoftTarget(sigma=2.0).features(transformer)
  covariance = gaussian.factor @ gaussian.factor.T
  np.testing.assert_allclose(covariance, 4.0 * w.T @ w, atol=1e-4)
  named = SoftTarget(sigma=2.0, layer="block0.fc2").features(transformer)
  np.testing.assert_array_equal(named.factor, gaussian.factor)


def test_features_of_a_transformer_are_not_rectified(transformer):
  method = SoftTarget(sigma=2.0)
  h = method.features(transformer).draw(KEY, 50)
  assert h.min() < -1.0
  logits = method.soft_labels(KEY, transformer, 50)
  np.testing.assert_allclose(
    logits, layers.classify(transformer, h), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("center", ["zero", "bias"])
def test_images_are_fitted_to_a_transformer(transformer, center):
  fitting = TargetFitting(image_lr=0.05, target_temperature=4.0)
  method = SoftTarget(
    synthesis_batch_size=16, sigma=2.0, center=center, draws=8, fitting=fitting
  )
  context = Context(teacher=transformer)
  state = jax.jit(method.init)(KEY, context)
  assert len(np.unique(state.soft_labels.argmax(1))) > 5
  step = jax.jit(method.step)
  infos = []
  for index in range(25):
    state, info = step(jax.random.fold_in(KEY, index), state, context)
    infos.append(info)
  assert infos[-1].divergence < 0.8 * infos[0].divergence
  assert infos[-1].agreement >= infos[0].agreement


def test_a_transformer_has_no_batch_norm_moments(transformer):
  with pytest.raises(UsageError, match=r"block0\.fc2.*--moments weights"):
    SoftTarget(moments="batch_norm").init(KEY, Context(teacher=transformer))


class Flattened(nn.Module):
  """A convolution whose pixels are all features of the last layer."""

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
    return nn.Dense(10, name="linear")(x.reshape(len(x), -1))


def test_a_layer_of_another_width_than_the_features_is_refused():
  network = net.init(KEY, Flattened(), spec())
  with pytest.raises(UsageError, match="256 features.*conv.*4 channels"):
    SoftTarget().init(KEY, Context(teacher=network))
