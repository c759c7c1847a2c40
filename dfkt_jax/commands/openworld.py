"""`dfkt distill` with a pool: a student from images of another kind."""

import dataclasses
import functools
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np

from dfkt_jax import (
  files,
  images,
  models,
  parallel,
  placement,
  teachers,
  workdir,
)
from dfkt_jax import network as net
from dfkt_jax.commands import evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.openworld import round as rounds
from dfkt_jax.openworld import scoring, selection
from dfkt_jax.openworld.contract import OpenWorld, Study
from dfkt_jax.openworld.selection import Selection

M = TypeVar("M", bound=OpenWorld)
GRID_IMAGES = 64
SELECTION = "selection.csv"
CACHE = Path("~/.cache/dfkt/pools")


@dataclasses.dataclass(frozen=True)
class DistillOpenWorld(Generic[M]):
  """Distils a teacher into a student on unlabelled images of another kind.

  The teacher looks at the whole pool; the method selects from it. The selection
  is WORKDIR/selection.csv, chosen and rejected images are in WORKDIR/images,
  the student in WORKDIR/student.
  """

  method: M
  study: Study
  teacher: Path  # directory of the teacher ('dfkt teacher import' makes one)
  student: str  # architecture of the student, see 'dfkt list archs'
  pool: str  # folder:DIR, zip:FILE, npz:FILE, tfds:NAME: unlabelled images
  num_images: int = 50_000  # to select, where no --selection is given
  selection: Path | None = None  # a selection.csv to use instead of selecting
  eval_dataset: str | None = None  # real images that evaluation alone reads
  seed: int = 0
  evaluations: int = 20  # of the student during the run
  pool_cache: Path = CACHE  # where decoded images and teacher answers are kept

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return _run(self, options)


def _run(config: DistillOpenWorld, options: RunOptions) -> dict:
  check_numbers(config)
  _check_study(config)
  mesh = parallel.named_mesh(options.mesh)
  teacher, card = teachers.load(config.teacher)
  module = models.build(config.student, teacher.spec.classes)
  init = functools.partial(_init, config, module)
  key = jax.random.key(config.seed)
  if not hasattr(config.method, "summarise"):
    jax.eval_shape(init, key, teacher, None)
  dataset = evaluation.load(config.eval_dataset, teacher)
  settings = {
    "command": "distill",
    **workdir.settings(dataclasses.replace(config, pool_cache=None)),
    "teacher_sha256": card.weights_sha256,
    **_given(config),
  }
  # A finished run needs no pool, and a pool takes long.
  workdir.check(options.workdir, settings)
  result = workdir.finished(options.workdir)
  if result is not None:
    return result
  say = print if jax.process_index() == 0 else lambda text: None
  cache = config.pool_cache.expanduser()
  pool = open_pool(config.pool, teacher.spec.shape, cache, say=say)
  scores = scoring.score(pool, teacher, card, mesh, say)
  chosen = _select(config, options, pool, scores)
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    chosen = _settle(options, pool, scores, chosen)
    summarised = None
    if hasattr(config.method, "summarise"):
      rng = np.random.default_rng([config.seed, 1])
      summarised = config.method.summarise(rng, scores, chosen)
    judge = evaluation.Evaluation(teacher, dataset) if dataset else None
    # Processes might cluster a last bit apart: the first decides.
    summarised = parallel.of_first_process(summarised)
    placed = placement.place(teacher, mesh)
    state = placement.create(init, key, placed, summarised)
    source = _Chosen(pool, chosen.index)
    with Stream(source, config.study.batch_size, config.seed) as stream:
      state, pace = _train(
        config, options, key, placed, state, stream, mesh, judge
      )
    study = config.study
    return summary.finish(
      options,
      config,
      config.method.student(state),
      card,
      judge,
      {
        "steps": study.rounds * study.student_steps,
        "pool": config.pool,
        "pool_images": len(pool),
        "images_selected": len(chosen.index),
        "images_synthesized": _images_synthesized(config),
        **summary.cost(pace, study.student_steps * study.batch_size),
      },
    )


def _given(config):
  """A selection is what it says, not where it lies."""
  if config.selection is None:
    return {}
  try:
    return {"selection_sha256": files.sha256(config.selection)}
  except OSError as error:
    raise files.unreadable(config.selection, error) from error


def _check_study(config):
  """Refuses what describes no run."""
  counts = {
    "--steps": config.study.kd.steps,
    "--batch-size": config.study.batch_size,
    "--student-steps": config.study.student_steps,
    "--num-images": config.num_images,
  }
  for flag, count in counts.items():
    if count < 1:
      raise UsageError(f"{flag} is {count}: give a whole number from 1 up")
  if config.study.kd.target == "stored":
    raise UsageError(
      "--target stored needs images that were made for soft labels, and those"
      " of a pool have none: use --target teacher"
    )


def _select(config, options, pool: ImagePool, scores) -> Selection:
  """That of the run to be resumed, the given one, or a new one."""
  own = options.workdir / SELECTION
  if workdir.has_progress(options.workdir) and own.exists():
    return selection.read(own, pool)
  if config.selection is not None:
    return selection.read(config.selection, pool)
  if config.num_images > len(pool):
    raise UsageError(
      f"--num-images is {config.num_images} and {config.pool} has"
      f" {len(pool)}: give at most as many"
    )
  rng = np.random.default_rng(config.seed)
  return config.method.select(rng, scores, config.num_images)


def _settle(options, pool, scores, chosen) -> Selection:
  """The first process writes down what it chose, with pictures; all read it."""
  path = options.workdir / SELECTION
  if jax.process_index() == 0:
    selection.write(path, chosen, pool, scores.decision, scores.confidence)
    left = np.ones(len(pool), bool)
    left[chosen.index] = False
    rest = np.flatnonzero(left)
    for name, index in (("chosen", chosen.index), ("rejected", rest)):
      if len(index):
        # Evenly over the ranking of the one and the order of the other.
        few = index[np.linspace(0, len(index) - 1, GRID_IMAGES).astype(int)]
        grid = images.grid(pool.images[few])
        images.save_png(options.workdir / "images" / f"{name}.png", grid)
  parallel.wait("the selection is written")
  return selection.read(path, pool)


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """The selected images as a source of a stream."""

  pool: ImagePool
  index: np.ndarray

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.pool.images[int(self.index[index])]


def _init(config, module, key, teacher, summarised):
  student_key = transfers.stream(key, transfers.INIT, 1)
  student = net.init(student_key, module, teacher.spec)
  method_key = transfers.stream(key, transfers.INIT, 0)
  return config.method.init(
    method_key, teacher, student, config.study.kd, summarised
  )


def _images_synthesized(config) -> int:
  study = config.study
  made = study.rounds * study.student_steps * study.batch_size
  return made if hasattr(config.method, "sample") else 0


def _train(config, options, key, teacher, state, stream, mesh, judge):
  method, study = config.method, config.study
  step = rounds.make_round(method, study, Loops.for_backend())
  count = rounds.batches_per_round(method, study)

  def advance(state, index):
    batches = np.stack([next(stream) for _ in range(count)])
    batches = put(batches, mesh, axis=1)
    return step(state, index, key, teacher, batches)

  sample = jax.jit(
    lambda key, state: method.sample(  # type: ignore
      transfers.stream(key, transfers.PREVIEW, 0), state, GRID_IMAGES
    )
  )

  def observe(state, done):
    if hasattr(method, "sample"):
      grid = images.grid(parallel.gather(sample(key, state)))
      if jax.process_index() == 0:
        name = f"{done * study.student_steps:06d}.png"
        images.save_png(options.workdir / "images" / name, grid)
    return judge(method.student(state)) if judge else {}

  return drive(
    options,
    title=f"distill {type(method).__name__}",
    state=state,
    rounds=study.rounds,
    advance=advance,
    observe=observe,
    observe_every=max(1, study.rounds // max(1, config.evaluations)),
    images_per_round=study.student_steps * study.batch_size,
    steps_per_round=study.student_steps,
    stream=stream,
  )
