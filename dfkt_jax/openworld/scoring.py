"""The teacher's look at every image of a pool, in one sharded pass.

What it says is kept beside the pool, in parts that are written whole: a killed
pass goes on at the next part, another run with the same teacher has none to do,
and the features of ten million images are never in memory. Several processes
share the parts out; they have to see the same folder.
"""

from collections.abc import Callable
import dataclasses
import hashlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from dfkt_jax import network as net
from dfkt_jax import parallel, placement
from dfkt_jax.data.parts import Parts, save
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.network import Network
from dfkt_jax.teachers.store import Card

BATCH = 256  # images the teacher sees together
PART_BYTES = 256 * 2**20  # of pixels behind one part
_VERSION = 1  # of what `_look` answers


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the teacher says of n images, in the order of the pool."""

  decision: np.ndarray  # i32[n], the top class
  confidence: np.ndarray  # f32[n], its probability
  entropy: np.ndarray  # f32[n], of the prediction, in nats
  features: Parts  # f16[n, width] on disk, penultimate
  classes: int

  def __len__(self) -> int:
    return len(self.decision)


def score(
  pool: ImagePool,
  teacher: Network,
  card: Card,
  mesh: Mesh,
  say: Callable[[str], None] = print,
) -> Scores:
  """The teacher's answers to all of the pool, computed or read back.

  Args:
    card: of the teacher; together with its input it names the folder.
    mesh: over this process's devices of which batches are split.
  """
  identity = (_VERSION, card.weights_sha256, card.arch, teacher.spec)
  digest = hashlib.sha256(repr(identity).encode()).hexdigest()
  folder = pool.cache / f"teacher-{digest[:16]}"
  batches = max(1, PART_BYTES // (BATCH * int(np.prod(teacher.spec.shape))))
  starts = range(0, len(pool), batches * BATCH)
  look = jax.jit(_look)
  mesh = parallel.local(mesh)
  teacher = placement.place(teacher, mesh)
  small, large = [], []
  for part, start in enumerate(starts):
    scores_path = folder / f"{part:05d}.scores.npy"
    features_path = folder / f"{part:05d}.features.npy"
    rows = slice(start, min(start + batches * BATCH, len(pool)))
    own = part % jax.process_count() == jax.process_index()
    if own and not _is_whole(scores_path, features_path, rows):
      scores, features = _look_at(pool.images[rows], look, teacher, mesh)
      # Scores come last: they say that the part is whole.
      save(features_path, features)
      save(scores_path, scores)
      if len(starts) > 1:
        say(f"the teacher has seen {rows.stop:,} of {len(pool):,} images")
    small.append(scores_path)
    large.append(features_path)
  parallel.wait("the teacher has seen the pool")
  decision, confidence, entropy = np.concatenate(
    [np.load(path) for path in small], axis=1
  )
  return Scores(
    decision.astype(np.int32),
    confidence,
    entropy,
    Parts(large),
    teacher.spec.classes,
  )


def _is_whole(scores_path, features_path, rows):
  """Whether both files are there, whole, and about so many images."""
  try:
    scores = np.load(scores_path, mmap_mode="r")
    features = np.load(features_path, mmap_mode="r")
  except (OSError, ValueError):
    return False
  return scores.shape[1] == len(features) == rows.stop - rows.start


def _look_at(images, look, teacher, mesh):
  """f32[3, n] scores and f16[n, width] features."""
  scores, features = [], []
  even = BATCH % mesh.size == 0
  spec = PartitionSpec(parallel.DATA) if even else PartitionSpec()
  sharding = NamedSharding(mesh, spec)
  for start in range(0, len(images), BATCH):
    batch = images[start : start + BATCH]
    # One shape for the compiler; what is added is cut off again.
    padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
    padded[: len(batch)] = batch
    answers = look(teacher, jax.device_put(padded, sharding))
    answer, feature = jax.device_get(answers)
    scores.append(answer[:, : len(batch)])
    features.append(feature[: len(batch)])
  return np.concatenate(scores, axis=1), np.concatenate(features)


def _look(teacher, images):
  images = images.astype(jnp.float32) / 255
  logits, taps = net.features(teacher, images)
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  scores = jnp.stack(
    [
      # f32 holds every class number below 2^24 exactly.
      logits.argmax(1).astype(jnp.float32),
      p.max(1),
      -(p * log_p).sum(1),
    ]
  )
  # f16 ends at 65,504; directions are all that is asked of features.
  features = jnp.clip(taps["penultimate"], -6e4, 6e4)
  return scores, features.astype(jnp.float16)
