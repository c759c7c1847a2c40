"""The teacher's predictions for every image of a pool, in one sharded pass.

They are stored beside the pool, in parts that are written atomically: a killed
pass continues at the next part, another run with the same teacher computes
nothing, and the features of ten million images are never in memory. Several
processes divide the parts among them; they need the same folder.
"""

from collections.abc import Callable
import hashlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax import network as net
from dfkt_jax.contracts import Scores
from dfkt_jax.data.chunked import ChunkedArray, save_npy
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.devices.mesh import DATA, local_mesh
from dfkt_jax.devices.processes import barrier
from dfkt_jax.network import Network, placement
from dfkt_jax.teachers.store import Card

BATCH = 256  # images of one forward pass
PART_BYTES = 256 * 2**20  # of the pixels that one part is computed from
_VERSION = 1  # of what `_score_batch` returns


def score_pool(
  pool: ImagePool,
  teacher: Network,
  card: Card,
  mesh: Mesh,
  say: Callable[[str], None] = print,
) -> Scores:
  """Return the teacher's predictions for the pool, computed or read back.

  Args:
    card: the teacher's; together with its input it names the folder.
    mesh: batches are sharded over those of its devices that belong to this
      process.
    say: reports the progress.
  """
  identity = (_VERSION, card.weights_sha256, card.arch, teacher.spec)
  digest = hashlib.sha256(repr(identity).encode()).hexdigest()
  folder = pool.cache / f"teacher-{digest[:16]}"
  batches = max(1, PART_BYTES // (BATCH * int(np.prod(teacher.spec.shape))))
  starts = range(0, len(pool), batches * BATCH)
  score_batch = jax.jit(_score_batch)
  mesh = local_mesh(mesh)
  teacher = placement.put(teacher, mesh)
  small, large = [], []
  for part, start in enumerate(starts):
    scores_path = folder / f"{part:05d}.scores.npy"
    features_path = folder / f"{part:05d}.features.npy"
    rows = slice(start, min(start + batches * BATCH, len(pool)))
    own = part % jax.process_count() == jax.process_index()
    if own and not _is_complete(scores_path, features_path, rows):
      scores, features = _score_images(
        pool.images[rows], score_batch, teacher, mesh
      )
      # The scores are written last: their presence marks a complete part.
      save_npy(features_path, features)
      save_npy(scores_path, scores)
      if len(starts) > 1:
        say(f"the teacher has scored {rows.stop:,} of {len(pool):,} images")
    small.append(scores_path)
    large.append(features_path)
  barrier("the teacher has scored the pool")
  decision, confidence, entropy = np.concatenate(
    [np.load(path) for path in small], axis=1
  )
  return Scores(
    decision.astype(np.int32),
    confidence,
    entropy,
    ChunkedArray(large),
    teacher.spec.classes,
  )


def _is_complete(scores_path, features_path, rows):
  """Return whether both files are readable and hold this number of rows."""
  try:
    scores = np.load(scores_path, mmap_mode="r")
    features = np.load(features_path, mmap_mode="r")
  except (OSError, ValueError):
    return False
  return scores.shape[1] == len(features) == rows.stop - rows.start


def _score_images(images, score_batch, teacher, mesh):
  """Return f32[3, n] scores and f16[n, width] features."""
  scores, features = [], []
  even = BATCH % mesh.size == 0
  spec = PartitionSpec(DATA) if even else PartitionSpec()
  sharding = NamedSharding(mesh, spec)
  for start in range(0, len(images), BATCH):
    batch = images[start : start + BATCH]
    # One shape for the compiler; the padding is cut off afterwards.
    padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
    padded[: len(batch)] = batch
    outputs = score_batch(teacher, jax.device_put(padded, sharding))
    some_scores, some_features = jax.device_get(outputs)
    scores.append(some_scores[:, : len(batch)])
    features.append(some_features[: len(batch)])
  return np.concatenate(scores, axis=1), np.concatenate(features)


def _score_batch(teacher, images):
  """Return f32[3, batch] decision, confidence and entropy, and the features."""
  images = images.astype(jnp.float32) / 255
  logits, taps = net.features(teacher, images)
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  scores = jnp.stack(
    [
      # f32 represents every class number below 2^24 exactly.
      teacher.spec.task.decisions(logits).astype(jnp.float32),
      p.max(1),
      -(p * log_p).sum(1),
    ]
  )
  # f16 ends at 65,504, and only the directions of features are used.
  features = net.require_feature(taps, "penultimate", teacher)
  features = jnp.clip(features, -6e4, 6e4)
  return scores, features.astype(jnp.float16)
