"""Drift of BatchNorm's running statistics from one network to another."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from dfkt_jax.network import Network

Path = tuple[str, ...]


def batch_norm_drift(source: Network, adapted: Network) -> jax.Array:
  """Return how far BatchNorm's running means have moved, f32[].

  The unit is the source's standard deviation; the drift is the mean over
  channels, then over layers. It is 0 without BatchNorm, and where the adapted
  network has another architecture.
  """
  if source.module != adapted.module:
    return jnp.float32(0.0)
  old, new = source.batch_stats, adapted.batch_stats
  means = select_statistics(old, "mean")
  variances = select_statistics(old, "var")
  layers = [
    (jnp.abs(moved - means[path]) / jnp.sqrt(variances[path] + 1e-5)).mean()
    for path, moved in select_statistics(new, "mean").items()
  ]
  return jnp.stack(layers).mean() if layers else jnp.float32(0.0)


def select_statistics(stats: Mapping, name: str) -> dict[Path, Any]:
  """Return {path of a BatchNorm: f32[channels]}, its "mean" or its "var"."""
  flat = traverse_util.flatten_dict(stats)
  return {path[:-1]: leaf for path, leaf in flat.items() if path[-1] == name}
