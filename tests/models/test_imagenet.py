"""Networks for ImageNet: sizes, precision, rematerialization."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import statistics
from dfkt_jax.models.efficientnet_lite import EfficientNetLite
from dfkt_jax.models.imagenet_resnet import ImageNetResNet
from dfkt_jax.models.imagenet_vgg import ImageNetVGG, average_to
from dfkt_jax.models.inverted_residual import Stage
from dfkt_jax.models.mobilenet import MobileNetV2
from dfkt_jax.models.vision_transformer import VisionTransformer
from tests.networks import spec

# The published networks with 1000 classes.
PARAMETERS = {
  "imagenet-resnet18": 11_689_512,
  "imagenet-resnet34": 21_797_672,
  "imagenet-resnet50": 25_557_032,
  "imagenet-resnet101": 44_549_160,
  "vgg11-bn": 132_868_840,
  "vgg13-bn": 133_053_736,
  "vgg16-bn": 138_365_992,
  "vgg19-bn": 143_678_248,
  "mobilenet-v2": 3_504_872,
  "efficientnet-lite0": 4_652_008,
  "efficientnet-lite1": 5_416_680,
  "efficientnet-lite2": 6_092_072,
  "efficientnet-lite3": 8_197_096,
  "efficientnet-lite4": 13_006_568,
  "vit-tiny-16": 5_717_416,
  "vit-small-16": 22_050_664,
  "vit-base-16": 86_567_656,
}
STAGES = (Stage(8, 1, 1, expand=1), Stage(8, 2, 2, expand=6, size=5))
TINY = {
  "resnet": ImageNetResNet(10, (1, 1), "bottleneck", width=8),
  "vgg": ImageNetVGG(10, (1, 1), (8, 8), hidden=16),
  "mobilenet": MobileNetV2(10, STAGES, stem=8, last=16),
  "lite": EfficientNetLite(10, STAGES, stem=8, last=16),
  "vit": VisionTransformer(10, width=16, depth=2, heads=2),
}
IMAGES = jax.random.uniform(jax.random.key(3), (4, 32, 32, 3))


@pytest.fixture(scope="module", params=TINY)
def network(request):
  module = TINY[request.param]
  network = jax.jit(lambda: net.init(jax.random.key(0), module, spec(32, 3)))()
  # With initial statistics, reading a wrong one would go unnoticed.
  rng = np.random.default_rng(0)
  move = lambda x: x + (x.ndim == 1) * rng.uniform(0.0, 0.3, x.shape)
  moved = jax.tree.map(
    lambda x: jnp.asarray(move(x), jnp.float32), network.variables
  )
  return dataclasses.replace(network, variables=moved)


def _with(network, **fields):
  return dataclasses.replace(network, module=network.module.clone(**fields))


def test_the_list_is_complete():
  assert list(models.IMAGENET) == list(PARAMETERS)
  assert not models.IMAGENET.keys() - models.ARCHS.keys()


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_of_the_published_network(arch):
  module = models.build(arch, 1000)
  make = lambda: net.init(jax.random.key(0), module, spec(224, 3, 1000))
  network = jax.eval_shape(make)
  assert net.num_parameters(network) == PARAMETERS[arch]
  assert bool(network.batch_stats) != arch.startswith("vit")


def _objective(network, images):
  """Return a short DeepInversion loss, and the outputs it is computed from."""
  logits, taps = net.statistics(network, images)
  loss = jnp.square(logits).mean()
  if taps:
    loss += statistics.norm_distance(taps, network.batch_stats)
  return loss, (logits, taps)


def _settled(network):
  """Set running statistics to those of the images, as in a trained network."""
  train = jax.jit(lambda n: net.train_logits(n, IMAGES, jax.random.key(1))[1])
  for _ in range(50):
    network = dataclasses.replace(network, variables=train(network))
  return network


def test_remat_changes_neither_names_nor_numbers(network):
  # `models.norm` computes variances about the running means.
  network = _settled(network)
  again = _with(network, remat=True)
  shapes = lambda n: jax.eval_shape(
    lambda: net.init(jax.random.key(0), n.module, n.spec).variables
  )
  assert shapes(again) == shapes(network)
  gradient = jax.jit(jax.grad(_objective, argnums=1, has_aux=True))
  expected = gradient(network, IMAGES)
  found = gradient(again, IMAGES)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert jax.tree.structure(found[1][1]) == jax.tree.structure(
    network.batch_stats
  )
  assert np.abs(expected[0]).max() > 0
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_remat_keeps_less_for_the_backward_pass(network):
  def kept(network):
    loss = lambda x: net.logits(network, x).sum()
    _, backward = jax.eval_shape(lambda x: jax.vjp(loss, x), IMAGES)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  assert kept(_with(network, remat=True)) < kept(network)


def test_training_under_remat(network):
  train = jax.jit(lambda n, x: net.train_logits(n, x, jax.random.key(1)))
  logits, variables = train(_with(network, remat=True), IMAGES)
  assert logits.shape == (4, 10)
  assert jax.tree.structure(variables) == jax.tree.structure(network.variables)
  for old, new in zip(
    jax.tree.leaves(network.batch_stats),
    jax.tree.leaves(variables.get("batch_stats", {})),
    strict=True,
  ):
    assert not np.allclose(old, new)


def test_bf16_agrees_and_its_statistics_are_f32(network):
  half = _with(network, dtype=jnp.bfloat16)
  assert all(
    leaf.dtype == jnp.float32
    for leaf in jax.tree.leaves(
      jax.eval_shape(
        lambda: net.init(jax.random.key(0), half.module, half.spec).variables
      )
    )
  )
  logits, taps = jax.jit(net.statistics)(half, IMAGES)
  expected, expected_taps = jax.jit(net.statistics)(network, IMAGES)
  assert logits.dtype == jnp.float32
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits, expected, atol=0.05 * scale)
  for leaf, other in zip(
    jax.tree.leaves(taps), jax.tree.leaves(expected_taps), strict=True
  ):
    assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(leaf, other, rtol=0.1, atol=0.1)


def test_with_a_bottleneck(network):
  module = network.module.clone(bottleneck=models.layers.Bottleneck(width=6))
  made = jax.eval_shape(
    lambda: net.init(jax.random.key(0), module, network.spec)
  )
  _, taps = jax.eval_shape(net.features, made, IMAGES)
  assert taps["penultimate"].shape == (4, 6)


def test_average_to_a_side_that_does_not_divide():
  x = jnp.arange(5.0).reshape(1, 1, 5, 1) * jnp.ones((1, 2, 1, 1))
  found = average_to(x, 3)
  assert found.shape == (1, 3, 3, 1)
  # Windows of columns: 0 and 1; 1, 2 and 3; 3 and 4.
  np.testing.assert_allclose(found[0, :, :, 0], [[0.5, 2.0, 3.5]] * 3)
  assert average_to(found, 3) is found


def test_images_that_are_not_whole_patches_are_refused():
  with pytest.raises(UsageError, match="multiples of 16, not 40x40"):
    jax.eval_shape(
      lambda: net.init(jax.random.key(0), TINY["vit"], spec(40, 3))
    )
