"""Arithmetic in bf16 and remat: nothing around the network changes."""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context
from dfkt_jax.errors import UsageError
from dfkt_jax.models import layers
from dfkt_jax.network import precision
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from tests.networks import spec, tiny

KEY = jax.random.key(5)
METHOD = DeepInversion(synthesis_batch_size=16, jitter=0)


class Block(nn.Module):
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train):
    x = layers.conv(self.width, name="conv", dtype=self.dtype)(x)
    return nn.relu(layers.batch_norm(train, name="bn", dtype=self.dtype)(x))


class Blocks(nn.Module):
  """Two blocks that may be computed again for the gradient."""

  classes: int
  dtype: Any = jnp.float32
  remat: bool = False
  bottleneck: layers.Bottleneck | None = None

  @nn.compact
  def __call__(self, x, train: bool):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for index in range(2):
      x = block(4, self.dtype, name=f"block{index}")(x, train)
    x = x.mean((1, 2))
    return layers.head(self, x, self.classes, name="linear", train=train)


TEACHER = net.init(KEY, Blocks(10), spec())


def first_step(method):
  context = Context(teacher=TEACHER)
  state = method.init(KEY, context)
  program = str(jax.make_jaxpr(method.step)(KEY, state, context))
  return *jax.jit(method.step)(KEY, state, context), program


def test_bf16_keeps_pixels_statistics_losses_and_moments_f32():
  state, info, program = first_step(
    dataclasses.replace(METHOD, precision="bf16")
  )
  convolutions = [
    line for line in program.splitlines() if "= conv_general_dilated" in line
  ]
  assert convolutions
  assert all(":bf16[" in line for line in convolutions)
  floats = [
    leaf
    for leaf in jax.tree.leaves((state, info))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
  assert info.loss.shape == ()
  _, exact, program = first_step(METHOD)
  assert "bf16" not in program
  assert info.bn_distance == pytest.approx(float(exact.bn_distance), rel=0.02)
  assert info.bn_distance != exact.bn_distance
  arranged = precision.with_precision(TEACHER, "bf16", remat=False)
  logits, taps = net.statistics(arranged, state.images)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, taps))} == {
    jnp.dtype("float32")
  }


def test_remat_changes_no_number():
  state, info, program = first_step(METHOD)
  assert "remat" not in program
  other, other_info, program = first_step(
    dataclasses.replace(METHOD, remat=True)
  )
  assert "remat" in program
  np.testing.assert_allclose(other.images, state.images, atol=1e-5)
  np.testing.assert_allclose(other_info, info, rtol=1e-5)


def test_remat_leaves_less_for_the_gradient():
  def kept(remat):
    network = precision.with_precision(TEACHER, "f32", remat)
    images = jnp.zeros((4, *TEACHER.spec.shape))
    outputs = lambda images: net.statistics(network, images)
    _, pull_back = jax.vjp(outputs, images)
    return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

  assert kept(True) < 0.75 * kept(False)


def test_a_network_that_cannot_is_refused_by_the_flag():
  assert (
    precision.with_precision(tiny(), "f32", remat=False).module == tiny().module
  )
  with pytest.raises(
    UsageError, match="--remat True: the architecture ConvNet"
  ):
    dataclasses.replace(METHOD, remat=True).init(KEY, Context(teacher=tiny()))
