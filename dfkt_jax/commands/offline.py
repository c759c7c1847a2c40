"""`dfkt distill offline`: a student from a transfer set on disk."""

import dataclasses
import functools
from pathlib import Path

from flax import linen as nn
import jax
import numpy as np

from dfkt_jax import images, models, parallel, placement, teachers, workdir
from dfkt_jax import network as net
from dfkt_jax.commands import evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data.stream import Stream, put, stack
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.distillation.kd import State as Learner
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.transfer_set import TransferSet, open_transfer_set
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network

STEPS_PER_ROUND = 20
GRID_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class DistillOffline:
  """Distils a teacher into a student on a transfer set that is there already.

  Such as `dfkt synthesize` makes, which may have stored soft labels; any
  labelled images of the teacher's shape will do. A tfds: dataset is streamed
  from disk and may be larger than memory. The student ends up in
  WORKDIR/student; WORKDIR/result.json holds the figures.
  """

  method: Offline
  teacher: Path  # directory of the teacher ('dfkt teacher import' makes one)
  student: str  # architecture of the student, see 'dfkt list archs'
  transfer_set: str  # such as tfds:WORKDIR/dataset, see 'dfkt list datasets'
  eval_dataset: str | None = None  # real images that evaluation alone reads
  seed: int = 0
  evaluations: int = 20  # of the student during the run

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return _run(self, options)


def _run(config: DistillOffline, options: RunOptions) -> dict:
  # All that can be refused is refused before anything is written.
  check_numbers(config)
  method = config.method
  counts = {"--steps": method.kd.steps, "--batch-size": method.batch_size}
  for flag, count in counts.items():
    if count < 1:
      raise UsageError(f"{flag} is {count}: give a whole number from 1 up")
  plain = lambda text: (text or "").removesuffix("/test")
  if plain(config.transfer_set) == plain(config.eval_dataset):
    raise UsageError(
      f"--transfer-set and --eval-dataset are both {config.eval_dataset}:"
      " evaluate on images that the student does not learn from, such as"
      " digits/train and digits/test"
    )
  mesh = parallel.named_mesh(options.mesh)
  teacher, card = teachers.load(config.teacher)
  module = models.build(config.student, teacher.spec.classes)
  transfer_set = open_transfer_set(config.transfer_set, teacher.spec)
  _check(method, transfer_set, teacher.spec)
  dataset = evaluation.load(config.eval_dataset, teacher)
  settings = {
    "command": "distill",
    **workdir.settings(config),
    "transfer_images": len(transfer_set),
    "teacher_sha256": card.weights_sha256,
  }
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    result = workdir.finished(options.workdir)
    if result is not None:
      return result
    judge = evaluation.Evaluation(teacher, dataset) if dataset else None
    _show(transfer_set, options)
    teacher = placement.place(teacher, mesh)
    with Stream(transfer_set, method.batch_size, config.seed) as stream:
      learner, pace = _learn(
        config, options, module, teacher, stream, mesh, judge
      )
    return summary.finish(
      options,
      config,
      learner.student,
      card,
      judge,
      {
        "steps": method.kd.steps,
        "transfer_set": config.transfer_set,
        "transfer_images": len(transfer_set),
        "images_synthesized": 0,
        **summary.cost(pace, STEPS_PER_ROUND * method.batch_size),
      },
    )


def _check(method: Offline, transfer_set: TransferSet, spec) -> None:
  """Refuses settings that the transfer set does not go with."""
  name, kd = transfer_set.name, method.kd
  if kd.target == "stored" and not transfer_set.has_soft_labels:
    raise UsageError(
      f"--target stored and --transfer-set {name} has no soft labels of"
      f" {spec.classes} classes: use --target teacher, or images that 'dfkt"
      " synthesize' made by soft-target or zskd"
    )
  if kd.target == "stored" and kd.mix:
    raise UsageError(
      f"--mix is {kd.mix} and makes images that no soft label was stored for:"
      " use --target teacher, or --mix 0"
    )
  if kd.hard_label_weight and not transfer_set.has_labels:
    raise UsageError(
      f"--hard-label-weight is {kd.hard_label_weight} and the labels of"
      f" --transfer-set {name} are not the teacher's {spec.classes} classes:"
      " give images of those, or --hard-label-weight 0"
    )


def _show(transfer_set: TransferSet, options: RunOptions) -> None:
  """A grid of images from all over the set."""
  if jax.process_index() == 0:
    count = min(GRID_IMAGES, len(transfer_set))
    few = np.linspace(0, len(transfer_set) - 1, count).astype(int)
    grid = images.grid(np.stack([transfer_set[int(i)].images for i in few]))
    images.save_png(options.workdir / "images" / "transfer_set.png", grid)


def _learn(config, options, module, teacher, stream, mesh, judge):
  """The rounds of a run, on the current mesh; the learner's last state."""
  method, key = config.method, jax.random.key(config.seed)
  rounds = -(-method.kd.steps // STEPS_PER_ROUND)

  def body(state, step, key, batches, teacher):
    batch = jax.tree.map(lambda x: x[step % STEPS_PER_ROUND], batches)
    return method.step(key, state, step, batch, teacher)

  loops = Loops.for_backend()
  learn = loops.whole(loops.repeat(body, STEPS_PER_ROUND))

  def advance(state, index):
    batches = stack([next(stream) for _ in range(STEPS_PER_ROUND)])
    batches = put(batches, mesh, axis=1)
    first = index * STEPS_PER_ROUND
    state, info = learn(state, first, key, batches, teacher)
    return state, {"distillation": info}

  return drive(
    options,
    title="distill offline",
    state=placement.create(
      functools.partial(begin, method, module), key, teacher
    ),
    rounds=rounds,
    advance=advance,
    observe=lambda state, done: judge(state.student) if judge else {},
    observe_every=max(1, rounds // max(1, config.evaluations)),
    images_per_round=STEPS_PER_ROUND * method.batch_size,
    steps_per_round=STEPS_PER_ROUND,
    stream=stream,
  )


def begin(
  method: Offline, module: nn.Module, key: jax.Array, teacher: Network
) -> Learner:
  """The state before the first step, with the other distillations' student."""
  student_key = transfers.stream(key, transfers.INIT, 1)
  return method.kd.init(net.init(student_key, module, teacher.spec))
