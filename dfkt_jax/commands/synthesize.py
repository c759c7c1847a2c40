"""`dfkt synthesize`: a teacher's images as a dataset."""

import dataclasses
from pathlib import Path
from typing import Generic, TypeVar

import jax

from dfkt_jax import files, parallel, placement, teachers, workdir
from dfkt_jax.commands import batches, synthesize_apart
from dfkt_jax.commands.batches import Plan
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data import shards
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.metrics import read_metrics
from dfkt_jax.network import Network
from dfkt_jax.synthesis.contract import Synthesizer

M = TypeVar("M", bound=Synthesizer)


@dataclasses.dataclass(frozen=True)
class Synthesize(Generic[M]):
  """Makes images from a teacher and writes them as a TFDS dataset.

  WORKDIR/dataset holds them in ArrayRecord form, one shard a batch, to be read
  as tfds:WORKDIR/dataset; WORKDIR/images a grid of each batch. Labels are the
  classes the images were made for, or else the teacher's decisions.

  Where batches do not depend on each other, several processes share them out:
  each makes its own, whatever becomes of the others, and a rerun, by as many
  processes as one likes, makes those that are missing. A method that learns
  from batch to batch makes them in sequence, on the devices of all processes.
  """

  method: M
  teacher: Path  # directory of the teacher
  num_images: int = 1024
  steps: int | None = None  # of synthesis for a batch (default: the method's)
  student: Path | None = None  # network for methods that play against one
  verifier: Path | None = None  # an independent network that checks labels
  seed: int = 0

  @property
  def apart(self) -> bool:
    """Whether a batch is made without a look at the one before it."""
    pooled = bool(recipe(self.method).pool_size)
    return pooled and not hasattr(self.method, "restart")

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json.

    Where other processes still have batches to make there is no result.json,
    and "shards_missing" says how many.
    """
    check_numbers(self)
    if self.num_images < 1:
      raise UsageError(f"--num-images is {self.num_images}: give 1 or more")
    if self.steps is not None and self.steps < 1:
      raise UsageError(f"--steps is {self.steps}: give 1 or more")
    # Made apart, an image does not depend on who makes it: each process is one
    # device on a CPU, as those are that a launcher starts.
    cpu_devices = 1 if self.apart else parallel.CPU_DEVICES
    mesh = parallel.named_mesh(options.mesh, cpu_devices)
    teacher, _ = teachers.load(self.teacher)
    student = teachers.load(self.student)[0] if self.student else None
    verifier = teachers.load(self.verifier)[0] if self.verifier else None
    if verifier is not None and verifier.spec.classes != teacher.spec.classes:
      raise UsageError(
        f"--verifier {self.verifier} tells {verifier.spec.classes} classes"
        f" apart and the teacher {teacher.spec.classes}: give a network of the"
        " teacher's classes"
      )
    if transfers.images_per_step(self.method, recipe(self.method)) < 1:
      raise UsageError("--synthesis-batch-size is 0: give 1 or more")
    plan = _plan(self, options, teacher, student)
    if self.steps is None and not recipe(self.method).pool_size:
      raise UsageError(
        f"--steps is not given and {type(self.method).__name__} learns for as"
        " long as a student does: give the steps before each batch, such as"
        " --steps 1000"
      )
    shards.require()
    settings = {
      "command": "synthesize",
      **workdir.settings(self),
      "teacher_sha256": teachers.digest(self.teacher),
    }
    taken = workdir.claim(options.workdir, settings)
    make = _in_sequence
    if self.apart:
      if mesh.shape[parallel.MODEL] > 1:
        raise UsageError(
          f"--mesh {options.mesh}: batches that are made apart split no"
          f" parameters: give --mesh {parallel.DATA}=N"
        )
      mesh = parallel.local(mesh)
      process, _ = parallel.place()
      taken = workdir.share(options.workdir, settings, process)
      make = synthesize_apart.make
    with taken, jax.set_mesh(mesh):
      result = workdir.finished(options.workdir)
      if result is not None:
        return result
      teacher = placement.place(teacher, mesh)
      student = placement.place(student, mesh) if student else None
      return make(self, plan, options, teacher, student, verifier)


def recipe(method: Synthesizer) -> transfers.Transfer:
  """The method's own, else the default."""
  return getattr(method, "transfer", transfers.Transfer())


def _plan(config: Synthesize, options, teacher, student) -> Plan:
  """What to make; refuses what the method refuses."""
  method, own = config.method, recipe(config.method)
  size = min(transfers.images_per_step(method, own), config.num_images)
  key = jax.random.key(config.seed)
  state = jax.eval_shape(method.init, key, teacher, student)
  sample = jax.eval_shape(
    lambda key, state: method.sample(key, state, size), key, state
  )
  layout = shards.Layout(
    options.workdir / "dataset",
    -(-config.num_images // size),
    teacher.spec,
    soft_labels=sample.soft_labels is not None,
  )
  steps = config.steps or own.synthesis_steps
  return Plan(method, steps, size, config.num_images, layout)


def _in_sequence(
  config: Synthesize,
  plan: Plan,
  options: RunOptions,
  teacher: Network,
  student: Network | None,
  verifier: Network | None,
) -> dict:
  """Batches of a method that goes on from one to the next."""
  method, key = plan.method, jax.random.key(config.seed)
  advance_chunk = batches.make_advance(plan, key, teacher, student)

  @jax.jit
  def restart(state, index, key, teacher, student):
    if not hasattr(method, "restart"):
      return state  # a generator goes on as it is
    key = transfers.stream(key, transfers.RESTART, index)
    return method.restart(key, state, teacher, student)  # type: ignore

  def advance(state, index):
    if index and index % plan.chunks == 0:
      state = restart(state, index // plan.chunks, key, teacher, student)
    return advance_chunk(state, index)

  writes = jax.process_index() == 0
  look = batches.make_look(plan, options, key, teacher, verifier, writes)
  _, pace = drive(
    options,
    title=f"synthesize {type(method).__name__}",
    state=placement.create(
      method.init, transfers.stream(key, transfers.INIT, 0), teacher, student
    ),
    rounds=plan.layout.shards * plan.chunks,
    advance=advance,
    observe=lambda state, done: look(state, done, parallel.gather),
    observe_every=plan.chunks,
    images_per_round=plan.chunk * plan.size,
    steps_per_round=plan.chunk,
  )
  rows = read_metrics(options.workdir)
  result = batches.result(config, plan, rows, pace)
  if writes:
    shards.finish(plan.layout, plan.counts)
    files.write_json(options.workdir / "result.json", result)
  return result
