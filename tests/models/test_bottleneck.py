"""The bottleneck and weight-normalized classifier of the SFDA recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.network import layers
from tests.networks import spec

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network():
  module = models.build("convnet-half+bottleneck", 10)
  return net.init(KEY, module, spec())


def test_columns_of_the_classifier_have_a_direction_and_a_length(network):
  layer = network.params["classifier"]
  scale = jnp.arange(1.0, 11.0)
  params = {
    **network.params,
    "classifier": {**layer, "scale": scale, "bias": jnp.ones(10)},
  }
  changed = network.with_params(params)
  images = jax.random.uniform(KEY, (4, 8, 8, 1))
  logits, taps = net.features(changed, images)
  kernel = np.asarray(layer["kernel"])
  kernel = kernel / np.linalg.norm(kernel, axis=0) * np.asarray(scale)
  expected = np.asarray(taps["penultimate"]) @ kernel + 1.0
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  last = layers.list_layers(changed)[-1]
  np.testing.assert_allclose(layers.kernel(changed, last), kernel, rtol=1e-5)


def test_lengths_are_initialized_to_those_of_the_columns(network):
  layer = network.params["classifier"]
  np.testing.assert_allclose(
    layer["scale"], jnp.linalg.norm(layer["kernel"], axis=0), rtol=1e-5
  )


def test_features_are_standardized_and_signed(network):
  images = jax.random.uniform(KEY, (64, 8, 8, 1))
  _, taps, _ = net.train_features(network, images, KEY)
  features = np.asarray(taps["penultimate"])
  assert features.shape == (64, 256)
  np.testing.assert_allclose(features.mean(0), 0.0, atol=1e-3)
  assert (features < 0).any()


def test_every_parameter_belongs_to_a_part(network):
  parts = layers.parts(network)
  flat = {
    "/".join(key.key for key in path): part
    for path, part in jax.tree_util.tree_leaves_with_path(parts)
  }
  assert flat["conv1/kernel"] == "backbone"
  assert flat["bottleneck/kernel"] == flat["bottleneck_bn/scale"]
  assert flat["bottleneck/kernel"] == "bottleneck"
  assert flat["classifier/scale"] == flat["classifier/bias"] == "classifier"
  plain = net.init(KEY, models.build("convnet-half", 10), spec())
  assert set(jax.tree.leaves(layers.parts(plain))) == {"backbone", "classifier"}


def test_dropout_needs_a_key():
  module = models.build("shot-lenet", 10)
  network = net.init(KEY, module, spec(28))
  images = jax.random.uniform(KEY, (8, 28, 28, 1))
  kept, _ = net.train_logits(network, images, None)
  again, _ = net.train_logits(network, images, None)
  dropped, _ = net.train_logits(network, images, KEY)
  np.testing.assert_array_equal(kept, again)
  assert not np.allclose(kept, dropped)


def test_batch_statistics_are_those_of_a_training_pass(network):
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  seen = net.batch_statistics(network, images)
  _, _, variables = net.train_features(network, images, None)
  for name, stats in variables["batch_stats"].items():
    before = network.batch_stats[name]
    moved = 0.9 * before["mean"] + 0.1 * seen[name]["mean"]
    np.testing.assert_allclose(stats["mean"], moved, rtol=1e-4, atol=1e-5)
