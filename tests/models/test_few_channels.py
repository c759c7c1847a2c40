"""Compare convolutions of few channels with those of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.models import few_channels

NUMBERS = few_channels.NUMBERS


def arrays(batch, height, width, inputs, outputs):
  keys = jax.random.split(jax.random.key(0), 3)
  return (
    jax.random.normal(keys[0], (batch, height, width, inputs)),
    jax.random.normal(keys[1], (3, 3, inputs, outputs)),
    jax.random.normal(keys[2], (batch, height, width, outputs)),
  )


def evaluate(conv, x, kernel, dy, **settings):
  """Return the convolution and its gradients."""

  def apply(x, kernel):
    call = lambda x, kernel: conv(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS, **settings
    )
    y, back = jax.vjp(call, x, kernel)
    return y, back(dy)

  return jax.jit(apply)(x, kernel)


@pytest.mark.parametrize(
  ("inputs", "outputs", "count"),
  [(3, 16, 4), (16, 3, 4), (16, 16, 2), (3, 64, 2), (16, 32, 1), (1, 8, 1)],
)
def test_it_is_the_convolution_and_its_gradients(inputs, outputs, count):
  x, kernel, dy = arrays(2, 5, 8, inputs, outputs)
  assert few_channels.count_columns(x.shape, kernel.shape) == count
  found = evaluate(few_channels.conv_general_dilated, x, kernel, dy)
  expected = evaluate(jax.lax.conv_general_dilated, x, kernel, dy)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    expected,
  )


def test_the_number_of_columns_divides_the_width():
  assert few_channels.count_columns((2, 5, 7, 16), (3, 3, 16, 16)) == 1
  assert few_channels.count_columns((2, 5, 6, 16), (3, 3, 16, 16)) == 2
  assert few_channels.count_columns((2, 5, 14, 3), (3, 3, 3, 16)) == 2


def test_groups_and_strides_are_left_to_jax():
  x, kernel, _ = arrays(2, 6, 8, 4, 8)
  conv = lambda convolve, *args, **settings: convolve(
    *args, dimension_numbers=NUMBERS, **settings
  )
  for strides, groups in (((2, 2), 1), ((1, 1), 2)):
    args = (x, kernel[:, :, : 4 // groups], strides, ((1, 1), (1, 1)))
    np.testing.assert_array_equal(
      *(
        conv(convolve, *args, feature_group_count=groups)
        for convolve in (
          few_channels.conv_general_dilated,
          jax.lax.conv_general_dilated,
        )
      )
    )


def test_only_a_cpu_computes_several_columns_at_once():
  x, kernel, _ = arrays(2, 4, 8, 16, 16)
  conv = lambda x, kernel: few_channels.conv_general_dilated(
    x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS
  )
  lowered = lambda platform: (
    jax.jit(conv).trace(x, kernel).lower(lowering_platforms=(platform,))
  )
  assert "tensor<3x4x16x32xf32>" in lowered("cpu").as_text()
  assert "tensor<3x4x16x32xf32>" not in lowered("cuda").as_text()


def test_the_gradient_of_a_gradient():
  x, kernel, dy = arrays(1, 4, 4, 4, 4)

  def penalty(convolve):
    y = lambda x: convolve(
      x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=NUMBERS
    )
    slope = jax.grad(lambda x: jnp.square(y(x) * dy).sum())
    return jax.jit(jax.grad(lambda x: jnp.square(slope(x)).sum()))(x)

  np.testing.assert_allclose(
    penalty(few_channels.conv_general_dilated),
    penalty(jax.lax.conv_general_dilated),
    rtol=1e-3,
  )
