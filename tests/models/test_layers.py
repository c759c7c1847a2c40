"""Layers shared by architectures, against those of Flax and JAX."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.models import layers, resnet
from dfkt_jax.models.resnet import ResNet
from dfkt_jax.network import Classification, InputSpec


def windows(x):
  return nn.max_pool(x, (2, 2), strides=(2, 2))


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [(8, 8), (7, 5), (3, 2)])
def test_max_pool_is_the_maximum_of_windows(side):
  x = jax.random.normal(jax.random.key(0), (2, *side, 3))
  np.testing.assert_array_equal(layers.max_pool(x), windows(x))
  weights = jnp.arange(windows(x).size, dtype=x.dtype)
  loss = lambda pool: lambda x: pool(x).ravel() @ weights
  np.testing.assert_array_equal(
    jax.grad(loss(layers.max_pool))(x), jax.grad(loss(windows))(x)
  )


def test_the_first_of_equal_values_has_the_gradient():
  gradient = jax.grad(lambda x: layers.max_pool(x).sum())
  first = [1.0, 0.0, 0.0, 0.0]
  np.testing.assert_array_equal(gradient(jnp.ones((1, 2, 2, 1))).ravel(), first)
  later = jnp.array([[1.0, 2.0], [2.0, 2.0]])[None, :, :, None]
  np.testing.assert_array_equal(gradient(later).ravel(), [0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("side", [(6, 8), (7, 5)])
def test_overlapping_max_pool(side):
  overlapping = lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
  x = jax.random.normal(jax.random.key(0), (2, *side, 3))
  expected = overlapping(x)
  np.testing.assert_array_equal(layers.max_pool_3x3(x), expected)
  weights = jnp.arange(expected.size, dtype=x.dtype)
  loss = lambda pool: lambda x: pool(x).ravel() @ weights
  close(jax.grad(loss(layers.max_pool_3x3))(x), jax.grad(loss(overlapping))(x))


def test_relu6_and_its_gradient():
  x = jnp.array([-1.0, 0.0, 2.0, 6.0, 7.0])
  value, back = jax.vjp(layers.relu6, x)
  np.testing.assert_array_equal(value, [0.0, 0.0, 2.0, 6.0, 6.0])
  np.testing.assert_array_equal(back(jnp.ones(5))[0], [0, 0, 1, 0, 0])
  assert layers.relu6(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


class Unfolded(nn.Module):
  """The expected output of PooledConv, from the same parameters."""

  width: int
  size: int
  padding: int

  @nn.compact
  def __call__(self, x):
    x = layers.conv(
      self.width, self.size, name="conv", bias=True, padding=self.padding
    )(x)
    return windows(nn.relu(x))


@pytest.mark.parametrize(
  ("side", "channels", "size", "padding"),
  [(28, 1, 5, 2), (14, 3, 5, 0), (8, 2, 3, 1), (6, 2, 1, 0)],
)
def test_pooled_conv_is_a_convolution_relu_and_max_pool(
  side, channels, size, padding
):
  key = jax.random.key(1)
  x = jax.random.normal(key, (2, side, side, channels))
  reference = Unfolded(4, size, padding)
  params = reference.init(key, x)["params"]["conv"]
  params["bias"] = jax.random.normal(key, (4,))
  folded = layers.PooledConv(4, size, padding)

  def pooled(params, x):
    return folded.apply({"params": params}, x)

  def expected(params, x):
    return reference.apply({"params": {"conv": params}}, x)

  assert jax.tree.map(jnp.shape, folded.init(key, x)["params"]) == jax.tree.map(
    jnp.shape, params
  )
  close(pooled(params, x), expected(params, x))
  loss = lambda f: lambda *args: (f(*args) ** 2).sum()
  found = jax.grad(loss(pooled), argnums=(0, 1))(params, x)
  jax.tree.map(close, found, jax.grad(loss(expected), (0, 1))(params, x))


def test_pooled_conv_is_initialized_like_a_convolution():
  x = jnp.zeros((1, 28, 28, 1))
  key = jax.random.key(2)

  class Net(nn.Module):
    folded: bool

    @nn.compact
    def __call__(self, x):
      if self.folded:
        return layers.PooledConv(6, 5, 2, name="conv")(x)
      return layers.conv(6, 5, name="conv", bias=True, padding=2)(x)

  folded, plain = (Net(folded).init(key, x) for folded in (True, False))
  jax.tree.map(np.testing.assert_array_equal, folded, plain)


def test_materialize_keeps_the_number_and_is_not_free_on_a_cpu():
  x = jnp.array([-2.5, -0.0, 0.0, 1e-30, 3e38], jnp.float32)
  value, back = jax.vjp(layers.materialize, x)
  # Compare bits, since -0 equals 0.
  bits = lambda x: np.asarray(x).view(np.int32)
  np.testing.assert_array_equal(bits(value), bits(x))
  np.testing.assert_array_equal(back(x)[0], x)
  assert layers.materialize(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  lowered = lambda platform: (
    jax.jit(layers.materialize).trace(x).lower(lowering_platforms=(platform,))
  )
  # The program compiled by XLA:CPU has to keep the square root.
  assert "sqrt" in lowered("cpu").compile().as_text()
  assert "sqrt" not in lowered("cuda").as_text()


def most_inputs():
  """Return the most inputs of a fused copy in a residual network's gradient.

  Weight gradients are computed from these copies.
  """
  spec = InputSpec(*(8, 8, 3), (0.5,) * 3, (0.5,) * 3, Classification(10))
  network = net.init(jax.random.key(0), ResNet(10, (3,), 4, "pad"), spec)

  def loss(params, x):
    return net.train_logits(network.with_params(params), x, None)[0].sum()

  gradient = jax.jit(jax.grad(loss))
  program = gradient.lower(network.params, jnp.ones((2, 8, 8, 3))).compile()
  return max(
    line.partition(" fusion(")[2].partition("), kind")[0].count("%")
    for line in program.as_text().splitlines()
    if "transpose_copy_fusion" in line.partition(" = ")[0]
  )


def test_materialize_keeps_xla_from_recomputing_blocks(monkeypatch):
  bounded = most_inputs()
  monkeypatch.setattr(resnet, "materialize", lambda x: x)
  # This also fails once XLA itself no longer recomputes them; then
  # `materialize` can be deleted.
  assert bounded < most_inputs()
