"""Compare distances of statistics with hand-made ones and released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.losses import statistics
from tests.assets import fixtures, shared_data
from tests.networks import tiny

RUNNING = {
  "a": {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
  "b": {"mean": jnp.zeros(1), "var": jnp.ones(1)},
}
TAPS = {
  "a": {"bn": {"mean": jnp.array([3.0, 4.0]), "var": jnp.ones(2)}},
  "b": {"mean": jnp.array([1.0]), "var": jnp.array([3.0])},
}


def test_norm_distance_by_hand():
  assert statistics.norm_distance(TAPS, RUNNING) == pytest.approx(5 + 1 + 2)


def test_first_layer_weight():
  value = statistics.norm_distance(TAPS, RUNNING, ("a", "bn"), 10.0)
  assert value == pytest.approx(50 + 1 + 2)
  value = statistics.norm_distance(TAPS, RUNNING, ("b",), 10.0)
  assert value == pytest.approx(5 + 10 + 20)


def test_gaussian_kl_by_hand():
  layer = lambda mu, s2: (mu**2 + s2) / 2 - np.log(s2) / 2 - 0.5
  expected = layer(3, 1) + layer(4, 1) + layer(1, 3)
  value = statistics.gaussian_kl(TAPS, RUNNING, epsilon=0.0)
  assert value == pytest.approx(expected)
  same = statistics.gaussian_kl(RUNNING, RUNNING)
  assert same == pytest.approx(0.0, abs=1e-6)


def test_moments_of_parts_average_to_those_of_the_whole():
  x = jax.random.normal(jax.random.key(0), (3, 16, 2)) + 30.0
  x += jnp.arange(3.0)[:, None, None]
  taps = lambda x: {"bn": {"mean": x.mean(0), "var": x.var(0)}}
  running = {"bn": {"mean": jnp.array([30.0, 29.0]), "var": jnp.ones(2)}}
  whole = taps(x.reshape(48, 2))
  parts = jax.vmap(lambda x: statistics.moments(taps(x), running))(x)
  mean = jax.tree.map(lambda leaf: leaf.mean(0), parts)
  found = statistics.from_moments(mean, running)
  assert jax.tree.structure(found) == jax.tree.structure(whole)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, whole
  )
  assert np.abs(parts["bn"]["mean"]).max() < 4


def test_style_is_the_mean_over_layers_of_both_errors():
  first = (9 + 16) / 2
  second = 1 + (np.sqrt(3) - 1) ** 2
  value = statistics.style(TAPS, RUNNING, epsilon=0.0)
  assert value == pytest.approx((first + second) / 2)
  assert statistics.style(RUNNING, RUNNING) == 0.0
  flat = jax.tree.map(jnp.zeros_like, TAPS)  # constant images
  gradient = jax.grad(statistics.style)(flat, RUNNING)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_distance_of_zero_has_a_finite_gradient():
  gradient = jax.grad(statistics.norm_distance)(RUNNING, RUNNING)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_layers_are_in_the_order_of_the_forward_pass():
  network = tiny(widths=(2, 3, 4))
  assert net.batch_norm_paths(network) == [("bn1",), ("bn2",), ("bn3",)]


def test_against_released_hooks():
  from dfkt_jax import teachers

  peer = fixtures()
  teacher, _ = teachers.import_file(
    shared_data("resnet20-12fca82f.th"), "resnet20", "akamaster-cifar10"
  )
  spec = teacher.spec
  with np.load(shared_data("cifar10_test1000.npz")) as file:
    photos = jnp.asarray(file["images"][:16] / 255, jnp.float32)
  noise = jnp.asarray(peer["noise_images"])

  @jax.jit
  def distances(images):
    _, taps = net.statistics(teacher, images)
    return statistics.norm_distances(taps, teacher.batch_stats)

  layers = distances(photos)
  ours = []
  for path in net.batch_norm_paths(teacher):
    layer = layers
    for name in path:
      layer = layer[name]
    ours.append(float(layer["mean"] + layer["var"]))
  np.testing.assert_allclose(ours, peer["bn_distance_resnet20"], rtol=1e-4)

  @jax.jit
  @jax.value_and_grad
  def total(x):
    _, taps = net.statistics(teacher, spec.denormalize(x))
    return statistics.norm_distance(taps, teacher.batch_stats)

  value, gradient = total(spec.normalize(noise))
  np.testing.assert_allclose(value, peer["bn_distance_noise_total"], rtol=1e-4)
  np.testing.assert_allclose(
    gradient,
    peer["bn_distance_noise_gradient_normalised_input"],
    rtol=2e-3,
    atol=2e-4 * np.abs(gradient).max(),
  )


def test_statistics_of_other_channels_are_refused():
  taps = {"b": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
  running = {"b": RUNNING["b"]}
  for loss in (
    statistics.norm_distance,
    statistics.gaussian_kl,
    statistics.moments,
    statistics.style,
  ):
    with pytest.raises(AssertionError):
      loss(taps, running)
