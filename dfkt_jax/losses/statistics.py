"""How far a batch's BatchNorm inputs are from what the teacher was trained on.

`taps` is what `network.statistics` answers and `running` the network's
`batch_stats`: the same tree of {"mean", "var"} f32[channels]. Each loss is a
scalar, a sum over layers.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def norm_distances(taps: Mapping, running: Mapping) -> Mapping:
  """||batch - running||_2 for every mean and every variance, as a tree.

  The norm and not its square (Yin et al., CVPR 2020, equation 4, as released):
  every layer pulls with a gradient of unit length however far it is.
  """
  return jax.tree.map(lambda a, b: _norm(a - b), taps, running)


def norm_distance(
  taps: Mapping,
  running: Mapping,
  first_layer: tuple[str, ...] = (),
  first_layer_weight: float = 1.0,
) -> jax.Array:
  """Sum of `norm_distances`, the layer at path `first_layer` weighted."""
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
  """KL(batch || running) of one Gaussian a channel, summed over all channels.

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
  """First and second moments of BatchNorm inputs about the running means.

  Unlike variances they average: the mean of those of equal parts of a batch is
  that of the batch. Parts of a batch can therefore be looked at one by one and
  `from_moments` still answers for all. About the running mean, because about 0
  the variance would be what is left of two large numbers.
  """

  def layer(batch, running):
    shift = batch["mean"] - running["mean"]
    return {"mean": shift, "square": batch["var"] + jnp.square(shift)}

  return _map_layers(layer, taps, running)


def from_moments(moments: Mapping, running: Mapping) -> Mapping:
  """The inverse of `moments`, that is taps."""

  def layer(moments, running):
    var = moments["square"] - jnp.square(moments["mean"])
    return {"mean": moments["mean"] + running["mean"], "var": var}

  return _map_layers(layer, moments, running)


def style(taps: Mapping, running: Mapping, epsilon: float = 1e-5) -> jax.Array:
  """Mean squared error of means and of deviations, the mean over layers.

  Hou and Zheng, "Source Free Domain Adaptation with Image Translation", 2020:
  an image's style is what BatchNorm is given. `epsilon` is added to variances,
  as BatchNorm adds it.
  """

  def layer(batch, running):
    deviation = lambda stats: jnp.sqrt(stats["var"] + epsilon)
    means = jnp.square(batch["mean"] - running["mean"]).mean()
    return means + jnp.square(deviation(batch) - deviation(running)).mean()

  return jnp.stack(_by_layer(layer, taps, running)).mean()


def _by_layer(function, taps, running):
  """What `function` says of the statistics of every BatchNorm, as a list."""
  return jax.tree.leaves(_map_layers(function, taps, running))


def _map_layers(function, taps, running):
  """`taps`, or such a tree of other statistics, with layers replaced."""
  is_layer = lambda node: "mean" in node
  return jax.tree.map(function, taps, running, is_leaf=is_layer)


def _norm(x):
  # The square root has no gradient at zero.
  return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-12)
