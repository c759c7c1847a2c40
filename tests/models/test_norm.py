"""BatchNorm that reports the statistics of its input."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.losses import statistics
from dfkt_jax.models.norm import BatchNorm
from tests.networks import spec, tiny

IMAGES = jax.random.uniform(jax.random.key(3), (16, 8, 8, 1))


class OneNorm(nn.Module):
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    x = BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
    return x.mean((1, 2))


def distance(network, images):
  _, taps = net.statistics(network, images)
  return statistics.norm_distance(taps, network.batch_stats)


def test_statistics_are_those_of_the_input():
  network = net.init(jax.random.key(0), OneNorm(), spec())
  _, taps = net.statistics(network, IMAGES)
  x = np.asarray(network.spec.normalize(IMAGES))
  layer = taps["BatchNorm_0"]
  np.testing.assert_allclose(layer["mean"], x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(layer["var"], x.var((0, 1, 2)), rtol=1e-5)


def test_a_small_variance_far_from_zero():
  """E[x^2] - E[x]^2 has no correct digit here; offsets from the mean do."""
  x = 1000 + 0.1 * jax.random.normal(jax.random.key(0), (64, 8, 8, 3))
  norm = BatchNorm(use_running_average=True)
  variables = norm.init(jax.random.key(0), x)
  stored = {"mean": jnp.full(3, 1000.2), "var": jnp.ones(3)}
  _, found = norm.apply(
    {**variables, "batch_stats": stored}, x, mutable=["bn_inputs"]
  )
  exact = np.asarray(x, np.float64)
  axes = (0, 1, 2)
  taps = found["bn_inputs"]
  np.testing.assert_allclose(taps["var"], exact.var(axes), rtol=1e-4)
  np.testing.assert_allclose(taps["mean"], exact.mean(axes), rtol=1e-6)


def test_the_gradient_of_mean_and_variance():
  x = jax.random.normal(jax.random.key(0), (5, 4, 4, 3)) + 0.5
  norm = BatchNorm(use_running_average=True)
  variables = norm.init(jax.random.key(0), x)

  def taps(x):
    found = norm.apply(variables, x, mutable=["bn_inputs"])[1]["bn_inputs"]
    return found["mean"].sum() + (found["var"] ** 2).sum()

  def textbook(x):
    return x.mean((0, 1, 2)).sum() + (x.var((0, 1, 2)) ** 2).sum()

  np.testing.assert_allclose(
    jax.grad(taps)(x), jax.grad(textbook)(x), rtol=1e-4, atol=1e-6
  )


def test_reporting_statistics_does_not_change_logits():
  network = tiny()
  logits, _ = net.statistics(network, IMAGES)
  np.testing.assert_array_equal(logits, net.logits(network, IMAGES))


def test_batch_statistics_in_training_move_the_running_ones():
  network = net.init(jax.random.key(0), OneNorm(), spec())
  out, variables = net.train_logits(network, IMAGES, jax.random.key(0))
  assert np.abs(out.mean()) < 1e-5
  x = np.asarray(network.spec.normalize(IMAGES))
  moved = variables["batch_stats"]["BatchNorm_0"]["mean"]
  np.testing.assert_allclose(moved, 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
  assert set(variables) == {"params", "batch_stats"}


def test_gradient_against_finite_differences():
  network = tiny()
  direction = jax.random.normal(jax.random.key(4), IMAGES.shape)
  gradient = jax.grad(distance, argnums=1)(network, IMAGES)
  step = 1e-3
  numeric = (
    distance(network, IMAGES + step * direction)
    - distance(network, IMAGES - step * direction)
  ) / (2 * step)
  exact = (gradient * direction).sum()
  assert numeric == pytest.approx(float(exact), rel=2e-2)


@pytest.mark.parametrize("wrap", ["jit", "vmap", "remat"])
def test_gradient_survives_transformations(wrap):
  network = tiny()
  expected = jax.grad(distance, argnums=1)(network, IMAGES)
  if wrap == "jit":
    value = jax.jit(jax.grad(distance, argnums=1))(network, IMAGES)
  elif wrap == "vmap":
    pair = jnp.stack([IMAGES, IMAGES[::-1]])
    gradient = jax.grad(distance, argnums=1)
    value = jax.vmap(gradient, (None, 0))(network, pair)[0]
  else:
    value = jax.grad(distance, argnums=1)(rematerialized(network), IMAGES)
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def rematerialized(network):
  """Return the network with its module wrapped in `nn.remat`."""
  module = nn.remat(type(network.module), static_argnums=(2,))(
    **{
      field.name: getattr(network.module, field.name)
      for field in dataclasses.fields(network.module)
      if field.name not in ("parent", "name")
    }
  )

  class Positional(nn.Module):
    # remat wants `train` by position to keep it static.
    @nn.compact
    def __call__(self, x, train):
      return module.copy(name="inner")(x, train)

  rename = lambda tree: {"inner": tree}
  variables = {name: rename(tree) for name, tree in network.variables.items()}
  return net.Network(variables, Positional(), network.spec)


def test_statistics_stay_f32_under_bf16():
  module = OneNorm(dtype=jnp.bfloat16)
  network = net.init(jax.random.key(0), module, spec())
  _, taps = net.statistics(network, IMAGES)
  x = np.asarray(network.spec.normalize(IMAGES))
  layer = taps["BatchNorm_0"]
  assert layer["mean"].dtype == layer["var"].dtype == jnp.float32
  np.testing.assert_allclose(layer["var"], x.var((0, 1, 2)), rtol=1e-5)
  gradient = jax.grad(distance, argnums=1)(network, IMAGES)
  assert np.isfinite(gradient).all()
  assert np.abs(gradient).max() > 0


def test_a_bf16_network_agrees_with_its_f32_self():
  network = tiny()
  half = dataclasses.replace(network.module, dtype=jnp.bfloat16)
  logits, taps = net.statistics(network.replace(module=half), IMAGES)
  assert logits.dtype == jnp.float32
  expected, expected_taps = net.statistics(network, IMAGES)
  np.testing.assert_allclose(logits, expected, atol=0.05)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05),
    taps,
    expected_taps,
  )
