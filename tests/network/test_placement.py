"""Networks and states on a mesh, with a model axis and without."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Batch, Context
from dfkt_jax.devices.mesh import MODEL, make_mesh
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.models.convnet import ConvNet
from dfkt_jax.network import placement
from tests.networks import spec, tiny

KEY = jax.random.key(0)
WIDE = (8, 64, 64)  # the last kernel has 36,864 scalars


def student(key):
  return net.init(key, ConvNet(10, WIDE), spec())


def shards(x):
  return {shard.data.shape for shard in x.addressable_shards}


def test_only_large_parameters_are_split():
  mesh = make_mesh(4, 2)
  network = placement.put(jax.device_get(student(KEY)), mesh)
  split = [
    leaf for leaf in jax.tree.leaves(network) if not leaf.is_fully_replicated
  ]
  assert split
  for leaf in split:
    assert leaf.size >= placement.LARGE
    assert leaf.sharding.spec == PartitionSpec(*[None] * (leaf.ndim - 1), MODEL)
  assert len(split) < len(jax.tree.leaves(network))


def test_a_placed_network_survives_the_donation_of_its_copy():
  source = jax.device_get(tiny())
  before = jax.tree.map(np.copy, source)
  placed = placement.put(source, make_mesh(8))
  jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(placed)
  jax.tree.map(np.testing.assert_array_equal, source, before)


def test_replicated_arrays_survive_the_donation_of_their_source():
  mesh = make_mesh(8)
  source = jnp.arange(4.0)
  copy = placement.put(source, mesh)
  jax.jit(lambda x: x + 1, donate_argnums=0)(copy)
  assert source.tolist() == [0, 1, 2, 3]


def train(mesh, steps=3, **fields):
  """Return state and terms of a wide student after KD on fixed images."""
  kd, recipe = KD(momentum=0.9, **fields), Recipe(steps=10)
  images = jax.random.uniform(jax.random.fold_in(KEY, 2), (16, 8, 8, 1))
  batch = Batch(images, jnp.full(16, -1, jnp.int32))
  with jax.set_mesh(mesh):
    teacher = placement.put(tiny(), mesh)
    begin = lambda key: kd.init(key, student(key), Context(recipe=recipe))
    state = placement.create(begin, KEY)
    step = jax.jit(
      lambda key, state, batch, teacher: kd.step(
        key,
        state,
        Context(teacher, batch=jax.tree.map(shard, batch), recipe=recipe),
      ),
      donate_argnums=1,
    )
    for index in range(steps):
      key = jax.random.fold_in(KEY, index)
      state, info = step(key, state, batch, teacher)
  return state, info


def test_a_model_axis_splits_parameters_and_moments_and_changes_nothing():
  alone, terms = train(make_mesh(1))
  split, terms_split = train(make_mesh(4, 2))
  large = [
    leaf
    for leaf in jax.tree.leaves(split)
    if leaf.ndim and leaf.size >= placement.LARGE
  ]
  # A kernel and its momentum, still split after steps.
  assert len(large) == 2
  for leaf in large:
    assert shards(leaf) == {(*leaf.shape[:-1], leaf.shape[-1] // 2)}
  for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(split)):
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(terms.distance, terms_split.distance, rtol=1e-3)


def test_statistics_per_device_are_those_of_each_share():
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  network = jax.device_get(tiny())
  mesh = make_mesh(4)
  with jax.set_mesh(mesh):
    placed = placement.put(network, mesh)
    per_device = jax.jit(
      lambda network, images: net.train_logits(
        network, images, None, "per_device"
      )
    )
    logits, variables = per_device(placed, images)
  shares = [
    net.train_logits(network, share, None)
    for share in images.reshape(4, 4, 8, 8, 1)
  ]
  expected = jnp.concatenate([share for share, _ in shares])
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  moved = jax.tree.map(
    lambda *leaves: sum(leaves) / 4, *[v["batch_stats"] for _, v in shares]
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    variables["batch_stats"],
    moved,
  )
  whole, _ = net.train_logits(network, images, None)
  assert np.abs(np.asarray(whole - logits)).max() > 1e-2


def test_statistics_per_device_give_the_gradient_of_the_mean_over_shares():
  """A batch's loss is then the mean over devices of the losses of shares."""
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  network = jax.device_get(tiny())
  mesh = make_mesh(4)

  def loss(params, network, images, statistics):
    logits, _ = net.train_logits(
      network.with_params(params), images, None, statistics
    )
    return (logits**2).mean()

  gradient = jax.jit(jax.grad(loss), static_argnums=3)
  with jax.set_mesh(mesh):
    placed = placement.put(network, mesh)
    found = gradient(placed.params, placed, images, "per_device")
  shares = [
    gradient(network.params, network, share, "global")
    for share in images.reshape(4, 4, 8, 8, 1)
  ]
  expected = jax.tree.map(lambda *leaves: sum(leaves) / 4, *shares)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    found,
    expected,
  )


def test_statistics_per_device_spare_the_reductions_of_every_layer():
  """A forward pass then reduces only the running statistics, once."""
  mesh = make_mesh(8)
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  with jax.set_mesh(mesh):
    placed = placement.put(jax.device_get(tiny()), mesh)
    count = {}
    for statistics in ("global", "per_device"):
      forward = lambda network, images, kind=statistics: net.train_logits(
        network, shard(images), None, kind
      )[0]
      compiled = jax.jit(forward).lower(placed, images).compile().as_text()
      count[statistics] = compiled.count(" all-reduce(")
  assert count["per_device"] == 0
  assert count["global"] >= 2


def test_a_batch_that_devices_cannot_share_is_refused():
  mesh = make_mesh(8)
  with jax.set_mesh(mesh), pytest.raises(UsageError, match="per_device"):
    net.train_logits(tiny(), jnp.zeros((9, 8, 8, 1)), None, "per_device")
