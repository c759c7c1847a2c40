"""The teacher's look at every image of a pool, in one sharded pass.

What it says is kept beside the pool, in parts that are written whole: a killed
pass goes on at the next part, another run with the same teacher has none to do,
and the features of ten million images are never in memory.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dfkt_jax import network as net
from dfkt_jax import parallel
from dfkt_jax.data.parts import Parts, save
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.network import Network

BATCH = 256  # images the teacher sees together
ROWS = 64 * BATCH  # images of one part


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
  digest: str,
  mesh: Mesh,
  say: Callable[[str], None] = print,
) -> Scores:
  """The teacher's answers to all of the pool, computed or read back.

  Args:
    teacher: on every device of `mesh`, over which batches are split.
    digest: of the teacher's weights; names the folder beside the pool.
  """
  folder = pool.cache / f"teacher-{digest[:16]}"
  starts = range(0, len(pool), ROWS)
  look = jax.jit(_look)
  small, large = [], []
  for part, start in enumerate(starts):
    scores_path = folder / f"{part:05d}.scores.npy"
    features_path = folder / f"{part:05d}.features.npy"
    if not scores_path.exists():
      rows = slice(start, min(start + ROWS, len(pool)))
      scores, features = _look_at(pool.images[rows], look, teacher, mesh)
      # Scores come last: they say that the part is whole.
      save(features_path, features)
      save(scores_path, scores)
      if len(starts) > 1:
        say(f"the teacher has seen {rows.stop:,} of {len(pool):,} images")
    small.append(np.load(scores_path))
    large.append(features_path)
  decision, confidence, entropy = np.concatenate(small, axis=1)
  return Scores(
    decision.astype(np.int32),
    confidence,
    entropy,
    Parts(large),
    teacher.spec.classes,
  )


def _look_at(images, look, teacher, mesh):
  """f32[3, n] scores and f16[n, width] features."""
  scores, features = [], []
  for start in range(0, len(images), BATCH):
    batch = images[start : start + BATCH]
    # One shape for the compiler; what is added is cut off again.
    padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
    padded[: len(batch)] = batch
    answers = look(teacher, parallel.put_batch(padded, mesh))
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
