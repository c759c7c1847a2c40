"""Distances between a batch's BatchNorm inputs and the training data's.

`taps` is the second result of `network.statistics` and `running` the network's
`batch_stats`: the same tree of {"mean", "var"} f32[channels]. Statistics belong
to a batch, so that each loss is a scalar, a sum or mean over layers.
"""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp


def norm_distances(taps: Mapping, running: Mapping) -> Mapping:
  """Return ||batch - running||_2 for every mean and every variance, as a tree.

  The norm and not its square (Yin et al., CVPR 2020, equation 4, as released):
  every layer pulls with a gradient of unit length however far it is.
  """
  return jax.tree.map(_distance, taps, running)


def norm_distance(
  taps: Mapping,
  running: Mapping,
  first_layer: tuple[str, ...] = (),
  first_layer_weight: float = 1.0,
) -> jax.Array:
  """Return the sum of `norm_distances`, the layer at `first_layer` weighted."""
  distances = norm_distances(taps, running)
  total = jax.tree.reduce(jnp.add, distances)
  if first_layer and first_layer_weight != 1.0:
    first = distances
    for name in first_layer:
      first = first[name]
    total += (first_layer_weight - 1.0) * jax.tree.reduce(jnp.add, first)
  return total


def gaussian_kl(
  taps: Mapping, running: Mapping, epsilon: float = 1e-5
) -> jax.Array:
  """Return KL(batch || running) of a Gaussian a channel, summed over channels.

  ((mu - m)^2 + s^2) / (2 v) - log(s / sqrt(v)) - 1/2 with mu, s^2 of the batch
  and m, v running (Choi et al., CVPR Workshops 2020). `epsilon` is added to
  both variances, as BatchNorm adds it.
  """

  def layer(batch, running):
    s2, v = batch["var"] + epsilon, running["var"] + epsilon
    squared = jnp.square(batch["mean"] - running["mean"])
    return ((squared + s2) / (2 * v) - 0.5 * jnp.log(s2 / v) - 0.5).sum()

  return jax.tree.reduce(jnp.add, _by_layer(layer, taps, running))


def moments(taps: Mapping, running: Mapping) -> Mapping:
  """Return first and second moments of BatchNorm inputs about running means.

  Unlike variances, moments average: the mean of the moments of equal parts of a
  batch is the moment of the batch. Parts of a batch can therefore be run one by
  one and `from_moments` still returns the statistics of the whole batch.
  Moments are about the running mean, because about 0 the variance would be the
  small difference of two large numbers.
  """

  def layer(batch, running):
    shift = batch["mean"] - running["mean"]
    return {"mean": shift, "square": batch["var"] + jnp.square(shift)}

  return _map_layers(layer, taps, running)


def from_moments(moments: Mapping, running: Mapping) -> Mapping:
  """Invert `moments`: return taps."""

  def layer(moments, running):
    var = moments["square"] - jnp.square(moments["mean"])
    return {"mean": moments["mean"] + running["mean"], "var": var}

  return _map_layers(layer, moments, running)


def style(taps: Mapping, running: Mapping, epsilon: float = 1e-5) -> jax.Array:
  """Return the squared errors of means and deviations, the mean over layers.

  Each is a mean over channels. Hou and Zheng, "Source Free Domain Adaptation
  with Image Translation", 2020: the style of an image is its BatchNorm inputs.
  `epsilon` is added to variances, as BatchNorm adds it.
  """

  def layer(batch, running):
    deviation = lambda stats: jnp.sqrt(stats["var"] + epsilon)
    means = jnp.square(batch["mean"] - running["mean"]).mean()
    return means + jnp.square(deviation(batch) - deviation(running)).mean()

  return jnp.stack(_by_layer(layer, taps, running)).mean()


def _by_layer(function, taps, running):
  """Return `function` of the statistics of every BatchNorm, as a list."""
  return jax.tree.leaves(_map_layers(function, taps, running))


def _map_layers(function, taps, running):
  """Replace each layer of `taps`, or of a tree like it, by `function` of it."""

  def layer(batch, running):
    chex.assert_equal_shape([*batch.values(), *running.values()])
    return function(batch, running)

  is_layer = lambda node: "mean" in node
  return jax.tree.map(layer, taps, running, is_leaf=is_layer)


def _distance(x, y):
  chex.assert_equal_shape([x, y])
  # The square root has no gradient at zero.
  return jnp.sqrt(jnp.sum(jnp.square(x - y)) + 1e-12)
