from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.models.generator import weight_init
from dfkt_jax.models.upsampled_conv import UpsampledConv


class Enlarged(nn.Module):
  """The expected output of UpsampledConv, from the same parameters."""

  width: int
  use_bias: bool

  @nn.compact
  def __call__(self, x):
    x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return nn.Conv(
      *(self.width, (3, 3)),
      padding=1,
      use_bias=self.use_bias,
      kernel_init=weight_init,
      name="conv",
    )(x)


class Small(nn.Module):
  width: int
  use_bias: bool

  @nn.compact
  def __call__(self, x):
    return UpsampledConv(self.width, weight_init, self.use_bias, name="conv")(x)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("side", [(4, 4), (3, 5), (1, 2)])
def test_it_is_the_convolution_of_the_enlarged_image(side, use_bias):
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (2, *side, 3))
  enlarged, small = Enlarged(5, use_bias), Small(5, use_bias)
  params = enlarged.init(keys[1], x)
  jax.tree.map(np.testing.assert_array_equal, params, small.init(keys[1], x))
  params = jax.tree.map(
    lambda p: p + jax.random.normal(keys[2], p.shape), params
  )
  weights = jax.random.normal(keys[3], (2, 2 * side[0], 2 * side[1], 5))

  def outputs(module):
    loss = lambda params, x: (module.apply(params, x) * weights).sum()
    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    return jax.jit(module.apply)(params, x), gradients

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    outputs(small),
    outputs(enlarged),
  )


def test_it_computes_in_its_dtype():
  x = jnp.ones((1, 2, 2, 3), jnp.float32)
  module = UpsampledConv(4, weight_init, dtype=jnp.bfloat16)
  y, variables = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x), x
  )
  assert y.dtype == jnp.bfloat16
  assert variables["params"]["kernel"].dtype == jnp.float32
