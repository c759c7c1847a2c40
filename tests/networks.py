"""Small networks for tests."""

from pathlib import Path

import jax
import jax.numpy as jnp

from dfkt_jax import models, teachers
from dfkt_jax import network as net
from dfkt_jax.network import Classification, InputSpec, Network


def spec(size: int = 8, channels: int = 1, classes: int = 10) -> InputSpec:
  mean, std = (0.4,) * channels, (0.3,) * channels
  return InputSpec(size, size, channels, mean, std, Classification(classes))


def tiny(seed: int = 0, widths=(4, 8), input_spec=None) -> Network:
  """A BatchNorm network as decided as a trained one.

  Its running statistics are not the initial ones and its logits are spread.
  """
  input_spec = input_spec or spec()
  module = models.convnet.ConvNet(input_spec.classes, widths)
  key = jax.random.key(seed)
  network = net.init(key, module, input_spec)
  leaves, structure = jax.tree.flatten(network.batch_stats)
  keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
  moved = [
    leaf + 0.2 * jnp.abs(jax.random.normal(k, leaf.shape))
    for k, leaf in zip(keys, leaves)
  ]
  stats = jax.tree.unflatten(structure, moved)
  params = network.variables["params"]
  head = {**params["linear"], "kernel": 5.0 * params["linear"]["kernel"]}
  params = {**params, "linear": head}
  return network.replace(variables={"params": params, "batch_stats": stats})


def save_tiny(place: Path, input_spec: InputSpec | None = None) -> None:
  """`tiny`, as wide as a convnet-half, as a network directory."""
  network = tiny(widths=(16, 32, 64), input_spec=input_spec)
  network = jax.device_get(network)
  teachers.save(place, network, teachers.describe(network, "convnet-half"))
