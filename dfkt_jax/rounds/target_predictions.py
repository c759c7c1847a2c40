"""Predictions of a network for all target images, in one pass over them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax import network as net
from dfkt_jax.contracts import Predictions
from dfkt_jax.devices.mesh import DATA, local_mesh
from dfkt_jax.devices.processes import gather
from dfkt_jax.network import Network, placement

BATCH = 256  # images of one forward pass of a process

PredictAll = Callable[[Network], Predictions]


def make_predict_all(images: np.ndarray, mesh: Mesh) -> PredictAll:
  """Make predict_all(network) -> Predictions.

  Every process predicts its own share of the images and keeps the results.

  Args:
    images: u8[n, height, width, channels], which may be a file on disk.
    mesh: of the run; the rows of the predictions are sharded over it.
  """
  rows = -(-len(images) // mesh.size) * mesh.size
  own = rows // jax.process_count()
  start = own * jax.process_index()
  sharding = NamedSharding(mesh, PartitionSpec(DATA))
  local = local_mesh(mesh)
  size = -(-min(BATCH, own) // local.size) * local.size
  batch_sharding = NamedSharding(local, PartitionSpec(DATA))

  @jax.jit
  def forward(network, images):
    logits, taps = net.features(network, images.astype(jnp.float32) / 255)
    return net.require_feature(taps, "penultimate", network), logits

  def predict_all(network: Network) -> Predictions:
    if jax.process_count() > 1:
      network = placement.put(gather(network), local)
    found = []
    with jax.set_mesh(local):
      for first in range(start, start + own, size):
        batch = images[first : min(first + size, len(images))]
        # All batches have one shape for the compiler; padding is cut off below.
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        found.append(forward(network, jax.device_put(padded, batch_sharding)))
    features, logits = (
      np.concatenate(parts)[:own] for parts in zip(*jax.device_get(found))
    )
    valid = np.arange(start, start + own) < len(images)
    put = lambda x: jax.make_array_from_process_local_data(sharding, x)
    return Predictions(put(features), put(logits), put(valid))

  return predict_all
