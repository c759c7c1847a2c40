"""`dfkt distill` with a pool: a student from images of another kind."""

import dataclasses
import functools
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np

from dfkt_jax import images, models, parallel, teachers, workdir
from dfkt_jax import network as net
from dfkt_jax.commands import evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.data.stream import Stream
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
  num_images: int = 50_000  # to select
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
  _check_counts(config)
  teacher, card = teachers.load(config.teacher)
  module = models.build(config.student, teacher.spec.classes)
  dataset = evaluation.load(config.eval_dataset, teacher)
  cache = config.pool_cache.expanduser()
  pool = open_pool(config.pool, teacher.spec.shape, cache)
  mesh = parallel.make_mesh(options.devices)
  settings = {
    "command": "distill",
    **workdir.settings(dataclasses.replace(config, pool_cache=None)),
    "teacher_sha256": card.weights_sha256,
  }
  replicated = parallel.replicate(teacher, mesh)
  scores = scoring.score(pool, replicated, card.weights_sha256, mesh)
  chosen = _select(config, options, pool, scores)
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    result = workdir.finished(options.workdir)
    if result is not None:
      return result
    _show(options, pool, scores, chosen)
    key = jax.random.key(config.seed)
    given = None
    if hasattr(config.method, "summarise"):
      rng = np.random.default_rng([config.seed, 1])
      given = config.method.summarise(rng, scores, chosen)
    init = functools.partial(_init, config, module, given)
    judge = evaluation.Evaluation(teacher, dataset) if dataset else None
    state = jax.jit(init)(key, replicated)
    source = _Chosen(pool, chosen.index)
    with Stream(source, config.study.batch_size, config.seed) as stream:
      state, pace = _train(
        config, options, key, replicated, state, stream, mesh, judge
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


def _check_counts(config):
  counts = {
    "--steps": config.study.kd.steps,
    "--batch-size": config.study.batch_size,
    "--student-steps": config.study.student_steps,
    "--num-images": config.num_images,
  }
  for flag, count in counts.items():
    if count < 1:
      raise UsageError(f"{flag} is {count}: give a whole number from 1 up")


def _select(config, options, pool: ImagePool, scores) -> Selection:
  """The given selection, that of a run to be resumed, or a new one."""
  if config.selection is not None:
    return selection.read(config.selection, pool)
  if config.num_images > len(pool):
    raise UsageError(
      f"--num-images is {config.num_images} and {config.pool} has"
      f" {len(pool)}: give at most as many"
    )
  rng = np.random.default_rng(config.seed)
  return config.method.select(rng, scores, config.num_images)


def _show(options, pool, scores, chosen):
  """Writes the selection, and pictures of it and of what it leaves."""
  selection.write(
    options.workdir / "selection.csv",
    chosen,
    pool,
    scores.decision,
    scores.confidence,
  )
  rest = np.setdiff1d(np.arange(len(pool)), chosen.index)
  for name, index in (("chosen", chosen.index), ("rejected", rest)):
    if len(index):
      # Evenly over the ranking of the one and the order of the other.
      few = index[np.linspace(0, len(index) - 1, GRID_IMAGES).astype(int)]
      grid = images.grid(pool.images[few])
      images.save_png(options.workdir / "images" / f"{name}.png", grid)


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """The selected images as a source of a stream."""

  pool: ImagePool
  index: np.ndarray

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.pool.images[int(self.index[index])]


def _init(config, module, given, key, teacher):
  student_key = transfers.stream(key, transfers.INIT, 1)
  student = net.init(student_key, module, teacher.spec)
  method_key = transfers.stream(key, transfers.INIT, 0)
  return config.method.init(
    method_key, teacher, student, config.study.kd, given
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
    batches = parallel.put_batch(batches, mesh, axis=1)
    return step(state, index, key, teacher, batches)

  sample = jax.jit(
    lambda key, state: method.sample(  # type: ignore
      transfers.stream(key, transfers.PREVIEW, 0), state, GRID_IMAGES
    )
  )

  def observe(state, done):
    if hasattr(method, "sample"):
      grid = images.grid(jax.device_get(sample(key, state)))
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
