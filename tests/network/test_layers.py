"""A layer's own output or input in its place changes nothing."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.network import layers
from tests.networks import spec, tiny

IMAGES = jax.random.uniform(jax.random.key(1), (6, 32, 32, 1))


def lenet():
  return net.init(jax.random.key(0), models.build("lenet5", 10), spec(32))


def outputs_of(network, layer, images):
  """Return a layer's output, captured by flax itself."""
  _, state = network.module.apply(
    network.variables,
    network.spec.normalize(images),
    train=False,
    capture_intermediates=lambda m, _: m.path == layer.path,
    mutable=["intermediates"],
  )
  (leaf,) = jax.tree.leaves(state["intermediates"])
  return leaf


def test_layers_come_in_the_order_of_their_use():
  names = [".".join(layer.path) for layer in layers.list_layers(lenet())]
  assert names == ["conv1", "conv2", "conv3", "fc1", "fc2"]
  kinds = [layer.is_norm for layer in layers.list_layers(tiny())]
  assert kinds == [False, True, False, True, False]
  assert [layer.is_vector for layer in layers.list_layers(lenet())] == [
    *(False, False),
    *(True, True, True),
  ]


@pytest.mark.parametrize("name", ["conv3", "fc1", "fc2"])
def test_a_layers_own_output_gives_the_networks_logits(name):
  network = lenet()
  layer = {x.path[0]: x for x in layers.list_layers(network)}[name]
  h = outputs_of(network, layer, IMAGES).reshape(len(IMAGES), -1)
  logits = jax.jit(layers.logits_from_output, static_argnums=1)(
    network, layer, h
  )
  expected = net.logits(network, IMAGES)
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_the_last_layers_own_input_gives_the_networks_logits():
  network = tiny()
  images = IMAGES[:, :8, :8]
  logits, taps = net.features(network, images)
  head = layers.list_layers(network)[-1]
  found = layers.logits_from_input(network, head, taps["penultimate"])
  np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["convnet-half", "shot-lenet"])
def test_the_classifier_alone_gives_the_networks_logits(arch):
  network = net.init(jax.random.key(0), models.build(arch, 10), spec(32))
  logits, taps = net.features(network, IMAGES)
  found = layers.classify(network, taps["penultimate"])
  np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)


def test_what_comes_before_the_layer_costs_nothing():
  network = lenet()
  layer = layers.list_layers(network)[-2]
  h = jnp.zeros((6, 84))
  flops = lambda f, *args: (
    jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
  )
  tail = flops(lambda n, h: layers.logits_from_output(n, layer, h), network, h)
  assert tail < 0.01 * flops(net.logits, network, IMAGES)


def test_kernel_bias_and_norm_are_those_of_the_layer():
  network = tiny()
  conv, norm, *_, head = layers.list_layers(network)
  assert layers.kernel(network, conv).shape[-1] == 4
  assert (layers.bias(network, conv) == 0).all()
  expected = network.params["linear"]["bias"]
  np.testing.assert_array_equal(layers.bias(network, head), expected)
  parameters = layers.norm_parameters(network, norm)
  assert set(parameters) == {"mean", "var", "scale", "bias"}
  assert isinstance(network.module, nn.Module)


class Foreign(nn.Module):
  """An architecture with layers of flax and one of its own."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3), name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    return Scaled(name="last")(x.mean((1, 2)))


class Scaled(nn.Module):
  """A linear layer that keeps its weights in a kernel of its own."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 10))
    return nn.LayerNorm(name="inner")(x @ kernel)


def test_layers_of_any_module_are_found_by_their_kernels():
  network = net.init(jax.random.key(0), Foreign(), spec())
  assert layers.list_layers(network) == [
    layers.Layer(("conv",), (8, 8, 4), False),
    layers.Layer(("norm",), (8, 8, 4), True),
    layers.Layer(("last",), (10,), False),
  ]
  assert layers.parts(network)["last"]["kernel"] == layers.CLASSIFIER
  assert layers.kernel(network, layers.list_layers(network)[-1]).shape == (
    4,
    10,
  )
