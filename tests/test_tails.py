"""Tails: a layer's own answer in its place changes nothing."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models, tails
from dfkt_jax import network as net
from tests.networks import spec, tiny

IMAGES = jax.random.uniform(jax.random.key(1), (6, 32, 32, 1))


def lenet():
  return net.init(jax.random.key(0), models.build("lenet5", 10), spec(32))


def outputs_of(network, layer, images):
  """What a layer answers, from flax itself."""
  _, state = network.module.apply(
    network.variables,
    network.spec.normalise(images),
    train=False,
    capture_intermediates=lambda m, _: m.path == layer.path,
    mutable=["intermediates"],
  )
  (leaf,) = jax.tree.leaves(state["intermediates"])
  return leaf


def test_layers_come_in_the_order_of_their_use():
  names = [".".join(layer.path) for layer in tails.layers(lenet())]
  assert names == ["conv1", "conv2", "conv3", "fc1", "fc2"]
  kinds = [layer.is_norm for layer in tails.layers(tiny())]
  assert kinds == [False, True, False, True, False]
  assert [layer.is_vector for layer in tails.layers(lenet())] == [
    *(False, False),
    *(True, True, True),
  ]


@pytest.mark.parametrize("name", ["conv3", "fc1", "fc2"])
def test_a_layers_own_output_gives_the_networks_logits(name):
  network = lenet()
  layer = {x.path[0]: x for x in tails.layers(network)}[name]
  h = outputs_of(network, layer, IMAGES).reshape(len(IMAGES), -1)
  logits = jax.jit(tails.from_output, static_argnums=1)(network, layer, h)
  expected = net.logits(network, IMAGES)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_the_last_layers_own_input_gives_the_networks_logits():
  network = tiny()
  images = IMAGES[:, :8, :8]
  logits, taps = net.features(network, images)
  head = tails.layers(network)[-1]
  answer = tails.from_input(network, head, taps["penultimate"])
  np.testing.assert_allclose(answer, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["convnet-half", "shot-lenet"])
def test_the_classifier_alone_gives_the_networks_logits(arch):
  network = net.init(jax.random.key(0), models.build(arch, 10), spec(32))
  logits, taps = net.features(network, IMAGES)
  answer = tails.classify(network, taps["penultimate"])
  np.testing.assert_allclose(answer, logits, rtol=1e-5, atol=1e-5)


def test_what_comes_before_the_layer_costs_nothing():
  network = lenet()
  layer = tails.layers(network)[-2]
  h = jnp.zeros((6, 84))
  flops = lambda f, *args: (
    jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
  )
  tail = flops(lambda n, h: tails.from_output(n, layer, h), network, h)
  assert tail < 0.01 * flops(net.logits, network, IMAGES)


def test_kernel_bias_and_norm_are_those_of_the_layer():
  network = tiny()
  conv, norm, *_, head = tails.layers(network)
  assert tails.kernel(network, conv).shape[-1] == 4
  assert (tails.bias(network, conv) == 0).all()
  expected = network.params["linear"]["bias"]
  np.testing.assert_array_equal(tails.bias(network, head), expected)
  parameters = tails.norm_parameters(network, norm)
  assert set(parameters) == {"mean", "var", "scale", "bias"}
  assert isinstance(network.module, nn.Module)
