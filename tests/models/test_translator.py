"""The translator, and the discriminator with spectral normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.models import spectral, translator
from dfkt_jax.models.translator import InstanceNorm

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_images_keep_their_shape_and_range(shape):
  network = jax.eval_shape(lambda: translator.init(KEY, shape, 4, 2))
  images = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
  assert jax.eval_shape(translator.translate, network, images).shape == (
    *(3, *shape),
  )


def test_a_translation_is_an_image_of_its_own():
  network = translator.init(KEY, (8, 8, 1), 4, 1)
  # Large weights, so that the range is used.
  network = network.replace(
    params=jax.tree.map(lambda x: 9 * x, network.params)
  )
  images = jax.random.uniform(KEY, (4, 8, 8, 1))
  made = jax.jit(translator.translate)(network, images)
  assert 0.0 <= made.min() < 0.1 and 0.9 < made.max() <= 1.0
  # Images do not depend on the others of the batch.
  alone = jax.jit(translator.translate)(network, images[:1])
  np.testing.assert_allclose(alone, made[:1], atol=1e-5)


def test_sides_that_cannot_be_halved_twice_are_refused():
  with pytest.raises(UsageError, match="multiples of 4.*30x32"):
    translator.init(KEY, (30, 32, 3), 4, 1)


def test_instance_norm_by_hand():
  x = np.random.default_rng(0).normal(2.0, 3.0, (2, 4, 3, 5)).astype("f4")
  norm = InstanceNorm()
  params = {"scale": 2.0 * jnp.ones(5), "bias": jnp.full(5, 0.5)}
  y = norm.apply({"params": params}, jnp.asarray(x))
  flat = x.reshape(2, 12, 5)
  plain = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
  np.testing.assert_allclose(
    np.asarray(y).reshape(2, 12, 5), 2.0 * plain + 0.5, rtol=1e-3, atol=1e-4
  )
  constant = jnp.ones((1, 4, 4, 5))
  loss = lambda x: norm.apply({"params": params}, x).sum()
  assert np.isfinite(jax.grad(loss)(constant)).all()


def test_power_iterations_find_the_largest_singular_value():
  network = spectral.init(KEY, (8, 8, 1), (4, 8))
  images = jax.random.uniform(KEY, (2, 8, 8, 1))
  step = jax.jit(lambda network: spectral.train_logits(network, images)[1])
  for _ in range(60):
    network = step(network)
  found = {
    path[-2].key.split("/")[0]: float(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.spectral)
    if leaf.ndim == 0
    for path in [(*path[:-1], path[-1], None)]
  }
  for name in ("conv0", "conv1", "linear"):
    kernel = np.asarray(network.params[name]["kernel"])
    largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
    assert found[name] == pytest.approx(largest, rel=1e-2)


def test_the_logit_does_not_grow_with_the_kernels():
  network = spectral.init(KEY, (8, 8, 1), (4, 8))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 7.0 * x if path[-1].key == "kernel" else x, network.params
  )
  larger = network.replace(params=params)
  images = jax.random.uniform(KEY, (3, 8, 8, 1))
  logits = spectral.logits(network, images)
  assert logits.shape == (3,)
  assert np.std(logits) > 1e-4
  np.testing.assert_allclose(
    spectral.logits(larger, images), logits, rtol=1e-4, atol=1e-6
  )


def test_too_many_layers_are_refused():
  with pytest.raises(UsageError, match="--discriminator-widths are 4.*8x8"):
    spectral.init(KEY, (8, 8, 1), (4, 4, 4, 4))
