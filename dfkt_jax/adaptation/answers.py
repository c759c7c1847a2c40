"""What a network says of all target images, in one pass over them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax import network as net
from dfkt_jax import parallel, placement
from dfkt_jax.adaptation.contract import Answers
from dfkt_jax.network import Network

BATCH = 256  # images a process looks at together

Look = Callable[[Network], Answers]


def make_look(images: np.ndarray, mesh: Mesh) -> Look:
  """look(network) for u8[n, height, width, channels], which may lie on disk.

  Every process looks at its own piece, and keeps the answers to it.
  """
  rows = -(-len(images) // mesh.size) * mesh.size
  own = rows // jax.process_count()
  start = own * jax.process_index()
  sharding = NamedSharding(mesh, PartitionSpec(parallel.DATA))
  here = parallel.local(mesh)
  size = -(-min(BATCH, own) // here.size) * here.size
  piece = NamedSharding(here, PartitionSpec(parallel.DATA))

  @jax.jit
  def forward(network, images):
    with_features = net.features(network, images.astype(jnp.float32) / 255)
    logits, taps = with_features
    return taps["penultimate"], logits

  def look(network: Network) -> Answers:
    if jax.process_count() > 1:
      network = placement.place(parallel.gather(network), here)
    found = []
    with jax.set_mesh(here):
      for first in range(start, start + own, size):
        batch = images[first : min(first + size, len(images))]
        # One shape for the compiler; what is added is cut off again.
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        found.append(forward(network, jax.device_put(padded, piece)))
    features, logits = (
      np.concatenate(parts)[:own] for parts in zip(*jax.device_get(found))
    )
    valid = np.arange(start, start + own) < len(images)
    put = lambda x: jax.make_array_from_process_local_data(sharding, x)
    return Answers(put(features), put(logits), put(valid))

  return look
