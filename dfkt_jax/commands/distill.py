"""`dfkt distill`: a smaller student from a teacher, without its data."""

import dataclasses
import functools
from pathlib import Path
from typing import Generic, TypeVar

from flax import linen as nn
import jax

from dfkt_jax import images, models, parallel, placement, teachers, workdir
from dfkt_jax import network as net
from dfkt_jax.commands import evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.driver import Pace, RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Synthesizer

M = TypeVar("M", bound=Synthesizer)
GRID_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Distill(Generic[M]):
  """Distils a teacher into a student without any real image.

  The student ends up in WORKDIR/student and can be evaluated and exported like
  any network; WORKDIR/result.json holds the figures.
  """

  method: M
  transfer: Transfer
  teacher: Path  # directory of the teacher ('dfkt teacher import' makes one)
  student: str  # architecture of the student, see 'dfkt list archs'
  eval_dataset: str | None = None  # real images that evaluation alone reads
  seed: int = 0
  evaluations: int = 20  # of the student during the run

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return _run(self, options)


def _run(config: Distill, options: RunOptions) -> dict:
  # All that can be refused is refused before anything is written.
  check_numbers(config)
  mesh = parallel.named_mesh(options.mesh)
  teacher, card = teachers.load(config.teacher)
  spec = teacher.spec
  init = functools.partial(
    begin, config, models.build(config.student, spec.classes)
  )
  _check_counts(config.method, config.transfer)
  key = jax.random.key(config.seed)
  jax.eval_shape(init, key, teacher)
  dataset = evaluation.load(config.eval_dataset, teacher)
  settings = {
    "command": "distill",
    **workdir.settings(config),
    "teacher_sha256": card.weights_sha256,
  }
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    result = workdir.finished(options.workdir)
    if result is not None:
      return result
    judge = evaluation.Evaluation(teacher, dataset) if dataset else None
    teacher = placement.place(teacher, mesh)
    state = placement.create(init, key, teacher)
    state, pace = _train(config, options, key, teacher, state, judge)
    return _finish(config, options, state, pace, judge, card)


def begin(
  config: Distill, module: nn.Module, key: jax.Array, teacher: Network
) -> transfers.State:
  """The state before the first round; `module` is the student's."""
  student_key = transfers.stream(key, transfers.INIT, 1)
  student = net.init(student_key, module, teacher.spec)
  return transfers.init(key, config.method, config.transfer, teacher, student)


def _check_counts(method: Synthesizer, transfer: Transfer) -> None:
  """Refuses counts that describe no run."""
  made = transfers.images_per_step(method, transfer)
  counts = {
    "--steps": transfer.kd.steps,
    "--batch-size": transfer.batch_size,
    "--synthesis-steps": transfer.synthesis_steps,
    "--student-steps": transfer.student_steps,
    "--synthesis-batch-size": made,
  }
  for flag, count in counts.items():
    if count < 1:
      raise UsageError(f"{flag} is {count}: give a whole number from 1 up")
  if transfer.offline and (transfer.warmup_rounds or not transfer.pool_size):
    raise UsageError(
      f"--offline fills a pool before the student begins and --pool-size is"
      f" {transfer.pool_size}, --warmup-rounds {transfer.warmup_rounds}: give"
      " --pool-size the size of the transfer set, and no --warmup-rounds"
    )
  if transfer.pool_size and transfer.pool_size < made:
    raise UsageError(
      f"--pool-size is {transfer.pool_size} and a round makes {made} images:"
      f" give {made} or more, or 0 for no pool"
    )


def _train(
  config: Distill,
  options: RunOptions,
  key: jax.Array,
  teacher: Network,
  state: transfers.State,
  judge: evaluation.Evaluation | None,
) -> tuple[transfers.State, Pace]:
  """The rounds of a run, on the current mesh."""
  method, transfer = config.method, config.transfer
  loops = Loops.for_backend()
  make = functools.partial(transfers.make_round, method, transfer, loops)
  warm_up = make(learn=False)
  learn = make(synthesise=not transfer.offline)
  rounds, warmup = transfer.rounds(method), transfer.warmup(method)
  # A pool may hold no more than one batch yet.
  shown = min(GRID_IMAGES, transfers.images_per_step(method, transfer))
  preview = jax.jit(
    lambda key, state: transfers.preview(key, method, state, shown)
  )

  def advance(state, index):
    step = warm_up if index < warmup else learn
    return step(state, index, key, teacher)

  def observe(state, done):
    grid = images.grid(parallel.gather(preview(key, state).images))
    if jax.process_index() == 0:
      name = f"{done * transfer.student_steps:06d}.png"
      images.save_png(options.workdir / "images" / name, grid)
    if judge is None or done <= warmup:
      return {}
    return judge(state.learner.student)

  return drive(
    options,
    title=f"distill {type(method).__name__}",
    state=state,
    rounds=rounds,
    advance=advance,
    observe=observe,
    observe_every=max(1, rounds // max(1, config.evaluations)),
    images_per_round=_images_per_round(config),
    steps_per_round=transfer.student_steps,
  )


def _images_per_round(config: Distill) -> int:
  """The batch once per optimiser step, as the benchmarks count; the mean."""
  method, transfer = config.method, config.transfer
  rounds, warmup = transfer.rounds(method), transfer.warmup(method)
  synthesising = warmup if transfer.offline else rounds
  synthesis = transfer.synthesis_steps * transfers.images_per_step(
    method, transfer
  )
  learning = transfer.student_steps * transfer.batch_size
  total = synthesising * synthesis + (rounds - warmup) * learning
  return round(total / rounds)


def _images_synthesized(config):
  """Images the student could learn from: pooled ones, or fresh samples."""
  method, transfer = config.method, config.transfer
  rounds, warmup = transfer.rounds(method), transfer.warmup(method)
  if transfer.pool_size:
    filling = warmup if transfer.offline else rounds
    made = filling * transfers.images_per_step(method, transfer)
    return min(made, transfer.pool_size) if transfer.offline else made
  return (rounds - warmup) * transfer.student_steps * transfer.batch_size


def _finish(config, options, state, pace, judge, teacher_card):
  rounds = config.transfer.rounds(config.method)
  learning = rounds - config.transfer.warmup(config.method)
  return summary.finish(
    options,
    config,
    state.learner.student,
    teacher_card,
    judge,
    {
      "rounds": rounds,
      "steps": learning * config.transfer.student_steps,
      "images_synthesized": _images_synthesized(config),
      **summary.cost(pace, _images_per_round(config)),
    },
  )
