"""All architectures: shapes, named intermediates, BatchNorm statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from tests.networks import spec

SIZES = {
  "lenet5": (28, 1),
  "lenet5-half": (28, 1),
  "convnet": (8, 1),
  "convnet-half": (8, 1),
  "ccexam-mnist": (28, 1),
  "ccexam-usps": (16, 1),
}
# The published networks with 10 classes: He et al. 2016 (0.27M .. 0.85M),
# Zagoruyko & Komodakis 2016, and the PyTorch originals.
PARAMETERS = {
  "lenet5": 61_706,
  "resnet20": 269_722,
  "resnet56": 853_018,
  "resnet18": 11_173_962,
  "resnet34": 21_282_122,
  "wrn-16-1": 175_066,
  "wrn-40-2": 2_243_546,
}


def abstract(arch):
  size, channels = SIZES.get(arch, (32, 3))
  module = models.build(arch, 10)
  return jax.eval_shape(
    lambda: net.init(jax.random.key(0), module, spec(size, channels))
  )


@pytest.mark.parametrize("arch", models.ARCHS)
def test_every_architecture(arch):
  network = abstract(arch)
  images = jax.ShapeDtypeStruct((2, *network.spec.shape), jnp.float32)
  logits, taps = jax.eval_shape(net.statistics, network, images)
  assert logits.shape == (2, 10)
  assert logits.dtype == jnp.float32
  assert jax.tree.structure(taps) == jax.tree.structure(network.batch_stats)
  shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
  assert shapes(taps) == shapes(network.batch_stats)
  assert len(net.batch_norm_paths(network)) == len(shapes(taps)) // 2
  _, features = jax.eval_shape(net.features, network, images)
  assert features["penultimate"].ndim == 2
  assert "stage1" in features
  if arch in PARAMETERS:
    assert net.num_parameters(network) == PARAMETERS[arch]


def test_quickstart_student_has_a_quarter_of_the_parameters():
  ratio = net.num_parameters(abstract("convnet-half")) / net.num_parameters(
    abstract("convnet")
  )
  assert ratio < 0.26


def test_wide_resnets_of_any_size_are_known():
  assert models.build("wrn-22-4", 10).widen == 4


@pytest.mark.parametrize("arch", ["resnet21", "wrn-17-1", "wrn-40-x", ""])
def test_unknown_architecture_is_refused(arch):
  with pytest.raises(UsageError, match="expected one of"):
    models.build(arch, 10)


def test_a_close_name_is_suggested():
  with pytest.raises(UsageError, match="did you mean 'resnet20'"):
    models.build("resnet-20", 10)


def test_generator_makes_images_from_batch_statistics():
  generator = models.generator.init(
    jax.random.key(0), (12, 8, 3), (8, 8, 4), latent=5
  )
  images = models.generator.sample(jax.random.key(1), generator, 6)
  assert images.shape == (6, 12, 8, 3)
  assert ((images > 0) & (images < 1)).all()
  # A smaller batch is normalized by other statistics.
  z = jax.random.normal(jax.random.key(2), (6, 5))
  together = models.generator.generate(generator, z)
  apart = models.generator.generate(generator, z[:2])
  assert not np.allclose(together[:2], apart)


def test_generator_refuses_sides_that_are_not_multiples():
  make = lambda *args: models.generator.init(jax.random.key(0), *args)
  with pytest.raises(UsageError, match="multiples of 4"):
    make((10, 8, 1), (8, 8, 4), 5)
  with pytest.raises(UsageError, match="--latent 1 or more"):
    make((8, 8, 1), (8, 8, 4), 0)
  with pytest.raises(UsageError, match="--generator-widths of 1 or more"):
    make((8, 8, 1), (), 5)


def test_lenet_refuses_images_of_other_sizes():
  with pytest.raises(UsageError, match="28x28 or 32x32, not 8x8"):
    net.init(jax.random.key(0), models.build("lenet5", 10), spec(8))
