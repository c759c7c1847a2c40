"""Images of a pool for `dfkt distill`: scored, selected, written down.

`config` is a Distill whose source is a Selector.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from dfkt_jax import files, images, teachers
from dfkt_jax.commands.feed import GRID_IMAGES, Feed
from dfkt_jax.contracts import Batch, Scores, Selection, Summarizes
from dfkt_jax.data import selection
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.devices.processes import barrier
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation import pool_scores
from dfkt_jax.network import Network
from dfkt_jax.runs import workdir
from dfkt_jax.runs.driver import RunOptions

SELECTION = "selection.csv"
DEFAULT_IMAGES = 50_000  # to select
CACHE = Path("~/.cache/dfkt/pools")


class Loaded(NamedTuple):
  """A pool, the teacher's predictions for it, and what was chosen."""

  pool: ImagePool
  scores: Scores
  chosen: Selection


def identity(config: Any) -> dict[str, str]:
  """Identify a given selection by its contents, wherever the file lies."""
  if config.selection is None:
    return {}
  try:
    return {"selection_sha256": files.sha256(config.selection)}
  except OSError as error:
    raise files.unreadable(config.selection, error) from error


def load(
  config: Any,
  options: RunOptions,
  teacher: Network,
  card: teachers.Card,
  mesh: Mesh,
) -> Loaded:
  """Decode the pool, run the teacher over it, and select.

  Raises:
    UsageError: the pool cannot be read or has too few images, or the given
      selection does not fit it.
  """
  say = print if jax.process_index() == 0 else lambda text: None
  cache = config.pool_cache.expanduser()
  pool = open_pool(config.pool, teacher.spec.shape, cache, log=say)
  scores = pool_scores.score_pool(pool, teacher, card, mesh, say)
  return Loaded(pool, scores, _select(config, options, pool, scores))


def _select(config, options, pool: ImagePool, scores: Scores) -> Selection:
  """Return that of the run to be resumed, the given one, or a new one."""
  own = options.workdir / SELECTION
  if workdir.has_progress(options.workdir) and own.exists():
    return selection.read(own, pool)
  if config.selection is not None:
    return selection.read(config.selection, pool)
  count = config.num_images or DEFAULT_IMAGES
  if count > len(pool):
    raise UsageError(
      f"--num-images is {count} and {config.pool} has {len(pool)}: give at most"
      " that number"
    )
  rng = np.random.default_rng(config.seed)
  chosen = config.source.select(rng, scores, count)
  _check(config.source, chosen, len(pool), count)
  return chosen


def _check(source, chosen, images: int, count: int) -> None:
  """Refuse what a user's `select` must not return."""
  found = ""
  if not isinstance(chosen, Selection):
    found = f"a {type(chosen).__name__}"
  elif len(chosen.index) != count or len(chosen.score) != count:
    found = f"{len(chosen.index)} images and {len(chosen.score)} scores"
  elif len(np.unique(chosen.index)) < count:
    found = "an image more than once"
  elif not 0 <= chosen.index.min() <= chosen.index.max() < images:
    found = f"images from {chosen.index.min()} to {chosen.index.max()}"
  if found:
    raise UsageError(
      f"{type(source).__name__}: select returned {found}: return a Selection"
      f" of {count} different images, numbered from 0 to {images - 1}"
    )


def feed(config: Any, options: RunOptions, loaded: Loaded) -> Feed:
  """Write the selection down and return the chosen images."""
  pool, scores, chosen = loaded
  chosen = _settle(options, pool, scores, chosen)
  assets: dict[str, Any] = {}
  if isinstance(config.source, Summarizes):
    rng = np.random.default_rng([config.seed, 1])
    # The first process decides: others might cluster a last bit apart.
    if jax.process_index() == 0:
      assets = config.source.summarize(rng, scores, chosen)
  figures = {
    "pool": config.pool,
    "pool_images": len(pool),
    "images_selected": len(chosen.index),
  }
  return Feed(_Chosen(pool, chosen.index), assets, figures)


def _settle(options, pool, scores, chosen) -> Selection:
  """Have the first process write its selection, and all processes read it."""
  path = options.workdir / SELECTION
  if jax.process_index() == 0:
    selection.write(path, chosen, pool, scores.decision, scores.confidence)
    left = np.ones(len(pool), bool)
    left[chosen.index] = False
    rest = np.flatnonzero(left)
    for name, index in (("chosen", chosen.index), ("rejected", rest)):
      if len(index):
        # Evenly spaced, from the best to the worst of the chosen ones.
        few = index[np.linspace(0, len(index) - 1, GRID_IMAGES).astype(int)]
        grid = images.grid(pool.images[few])
        images.save_png(options.workdir / "images" / f"{name}.png", grid)
  barrier("the selection is written")
  return selection.read(path, pool)


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """The selected images as a source of a stream."""

  pool: ImagePool
  index: np.ndarray

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, index: int) -> Batch:
    return Batch(self.pool.images[int(self.index[index])])  # type: ignore
