"""`dfkt distill`: a smaller student from a teacher, without its data."""

import dataclasses
import functools
from pathlib import Path
from typing import Generic, TypeVar

import jax

from dfkt_jax import (
  data,
  evaluate,
  files,
  images,
  models,
  parallel,
  teachers,
  workdir,
)
from dfkt_jax import network as net
from dfkt_jax.commands import summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.driver import Pace, RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.metrics import read_metrics
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


class Evaluation:
  """Student and teacher on the evaluation set; the only reader of real data."""

  def __init__(self, teacher: Network, dataset: data.Dataset):
    self._dataset = dataset
    self._predict = evaluate.make_predict()
    self._decisions = self._predict(teacher, dataset.images).argmax(1)
    self.teacher_accuracy = evaluate.share(self._decisions == dataset.labels)

  def __call__(self, student: Network) -> dict[str, float]:
    logits = self._predict(student, self._dataset.images)
    result = evaluate.score(logits, self._dataset.labels, student.spec.classes)
    agreement = evaluate.share(logits.argmax(1) == self._decisions)
    return {"accuracy": result["accuracy"], "agreement": agreement}


def _run(config: Distill, options: RunOptions) -> dict:
  # All that can be refused is refused before anything is written.
  check_numbers(config)
  teacher, card = teachers.load(config.teacher)
  spec = teacher.spec
  init = functools.partial(
    _init, config, models.build(config.student, spec.classes)
  )
  _check_counts(config.method, config.transfer)
  key = jax.random.key(config.seed)
  jax.eval_shape(init, key, teacher)
  dataset = None
  if config.eval_dataset is not None:
    dataset = data.load(config.eval_dataset, (spec.height, spec.width))
    dataset = evaluate.fit_to(teacher, dataset)
  mesh = parallel.make_mesh(options.devices)
  settings = {
    "command": "distill",
    **workdir.settings(config),
    "teacher_sha256": card.weights_sha256,
  }
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    result = workdir.finished(options.workdir)
    if result is not None:
      return result
    evaluation = Evaluation(teacher, dataset) if dataset else None
    teacher = parallel.replicate(teacher, mesh)
    state = jax.jit(init)(key, teacher)
    state, pace = _train(config, options, key, teacher, state, evaluation)
    return _finish(config, options, state, pace, evaluation, card)


def _init(config, module, key, teacher):
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
  evaluation: Evaluation | None,
) -> tuple[transfers.State, Pace]:
  """The rounds of a run, on the current mesh."""
  method, transfer = config.method, config.transfer
  loops = Loops.for_backend()
  make = functools.partial(transfers.make_round, method, transfer, loops)
  warm_up, learn = make(learn=False), make(learn=True)
  # A pool may hold no more than one batch yet.
  shown = min(GRID_IMAGES, transfers.images_per_step(method, transfer))
  preview = jax.jit(
    lambda key, state: transfers.preview(key, method, state, shown)
  )

  def advance(state, index):
    step = warm_up if index < transfer.warmup_rounds else learn
    return step(state, index, key, teacher)

  def observe(state, done):
    grid = images.grid(jax.device_get(preview(key, state)).images)
    if jax.process_index() == 0:
      name = f"{done * transfer.student_steps:06d}.png"
      images.save_png(options.workdir / "images" / name, grid)
    if evaluation is None:
      return {}
    metrics = evaluation(state.learner.student)
    return {f"eval/{name}": value for name, value in metrics.items()}

  return drive(
    options,
    title=f"distill {type(method).__name__}",
    state=state,
    rounds=transfer.rounds,
    advance=advance,
    observe=observe,
    observe_every=max(1, transfer.rounds // max(1, config.evaluations)),
    images_per_round=_images_per_round(config),
    steps_per_round=transfer.student_steps,
  )


def _images_per_round(config: Distill) -> int:
  """The batch once per optimiser step, as the benchmarks count."""
  method, transfer = config.method, config.transfer
  synthesis = transfers.images_per_step(method, transfer)
  return (
    transfer.synthesis_steps * synthesis
    + transfer.student_steps * transfer.batch_size
  )


def _images_synthesized(config):
  """Images the student could learn from: pooled ones, or fresh samples."""
  method, transfer = config.method, config.transfer
  if transfer.pool_size:
    return transfer.rounds * transfers.images_per_step(method, transfer)
  learning = transfer.rounds - transfer.warmup_rounds
  return learning * transfer.student_steps * transfer.batch_size


def _finish(config, options, state, pace, evaluation, teacher_card):
  student = jax.device_get(state.learner.student)
  transfer = config.transfer
  last = read_metrics(options.workdir)[-1]
  learning = transfer.rounds - transfer.warmup_rounds
  result = {
    "command": "distill",
    "method": type(config.method).__name__,
    "teacher_sha256": teacher_card.weights_sha256,
    "teacher_arch": teacher_card.arch,
    "student_arch": config.student,
    "teacher_parameters": teacher_card.parameters,
    "student_parameters": net.num_parameters(student),
    "seed": config.seed,
    "rounds": transfer.rounds,
    "steps": learning * transfer.student_steps,
    "eval_dataset": config.eval_dataset,
    **summary.accuracies(options.workdir),
    "agreement": last.get("eval/agreement"),
    "agreement_on_synthetic": round(last["distillation/agreement"], 6),
    "teacher_accuracy": evaluation.teacher_accuracy if evaluation else None,
    "images_synthesized": _images_synthesized(config),
    **summary.cost(pace, _images_per_round(config)),
  }
  if jax.process_index() == 0:
    source = f"dfkt distill {type(config.method).__name__}"
    teachers.save(
      options.workdir / "student",
      student,
      teachers.describe(student, config.student, source=source),
      replace=True,
    )
    files.write_json(options.workdir / "result.json", result)
  return result
