"""AdaBN's statistics by hand, and methods that need BatchNorm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.adaptation.ada_bn import AdaBN
from dfkt_jax.adaptation.notela import NOTELA
from dfkt_jax.adaptation.tent import Tent
from dfkt_jax.contracts import Batch
from dfkt_jax.errors import UsageError
from tests.adaptation.contexts import context
from tests.networks import spec, tiny

KEY = jax.random.key(3)
RECIPE = dataclasses.replace(AdaBN.recipe, steps=4, batch_size=8)
PIXELS = np.random.default_rng(0).integers(
  0, 256, (32, 8, 8, 1), dtype=np.uint8
)
IMAGES = jnp.asarray(PIXELS, jnp.float32) / 255


def adapt():
  """Return the network after every batch of a pass over the images."""
  method, source = AdaBN(), tiny()
  state = method.init(KEY, context(RECIPE, source))
  step, networks = jax.jit(method.step), [method.network(state)]
  for index in range(4):
    batch = Batch(IMAGES[8 * index : 8 * index + 8])
    here = context(RECIPE, source, batch=batch, step=index)
    state, _ = step(KEY, state, here)
    networks.append(method.network(state))
  return networks


def test_it_has_the_moments_of_the_target():
  adapted = adapt()[-1]
  first = tiny().spec.normalize(IMAGES)
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
  whole = net.batch_statistics(tiny(), IMAGES)
  np.testing.assert_allclose(whole["bn1"]["mean"], stats["mean"], atol=1e-4)


def test_only_statistics_move_and_only_once_there_is_a_batch():
  source, networks = tiny(), adapt()
  for a, b in zip(*map(jax.tree.leaves, (source, networks[0])), strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(
    *map(jax.tree.leaves, (source.params, networks[-1].params)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(
    *map(jax.tree.leaves, (networks[0].batch_stats, networks[1].batch_stats)),
    strict=True,
  ):
    assert (np.asarray(a) != np.asarray(b)).all()


@pytest.mark.parametrize("method", [AdaBN(), Tent(), NOTELA()])
def test_methods_that_need_batch_norm_say_so(method):
  plain = net.init(KEY, models.build("lenet5", 10), spec(28))
  with pytest.raises(UsageError, match="LeNet5 has none"):
    method.init(KEY, context(RECIPE, plain))
