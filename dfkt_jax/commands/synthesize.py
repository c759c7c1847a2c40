"""`dfkt synthesize`: a teacher's images as a dataset."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax

from dfkt_jax import teachers
from dfkt_jax.commands import independent_batches, synthesis_plan
from dfkt_jax.commands.synthesis_plan import Plan
from dfkt_jax.contracts import (
  Context,
  HasRecipe,
  Positive,
  Prepares,
  Restarts,
  Seed,
  Synthesizer,
)
from dfkt_jax.data import shards
from dfkt_jax.devices.mesh import (
  CPU_DEVICES,
  DATA,
  MODEL,
  local_mesh,
  parse_mesh,
)
from dfkt_jax.devices.processes import gather, process_rank
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network, placement
from dfkt_jax.rounds import distil
from dfkt_jax.runs import assets as run_assets
from dfkt_jax.runs import experiment
from dfkt_jax.runs.driver import Loop, RunOptions, drive
from dfkt_jax.runs.experiment import Finished, Work

M = TypeVar("M", bound=Synthesizer)


@dataclasses.dataclass(frozen=True)
class Synthesize(Generic[M]):
  """Makes images from a teacher and writes them as a TFDS dataset.

  WORKDIR/dataset holds them in ArrayRecord form, one shard a batch, to be read
  as tfds:WORKDIR/dataset; WORKDIR/images holds a grid of each batch. Labels are
  the classes that the images were made for, or else the teacher's decisions.

  Where batches are independent, several processes share them out: each makes
  its own, whatever happens to the others, and a rerun, by any number of
  processes, makes those that are missing. A method that learns from batch to
  batch makes them in sequence, on the devices of all processes.
  """

  method: M
  teacher: Path  # directory of the teacher
  num_images: Annotated[int, Positive] = 1024
  # of synthesis for a batch (default: the method's)
  steps: Annotated[int | None, Positive] = None
  student: Path | None = None  # network for methods that play against one
  verifier: Path | None = None  # an independent network that checks labels
  seed: Annotated[int, Seed] = 0

  @property
  def independent(self) -> bool:
    """Return whether no batch depends on the one before it."""
    stored = bool(recipe_of(self.method).memory_size)
    return stored and not isinstance(self.method, Restarts)

  def run(self, options: RunOptions) -> dict:
    """Run to the end, or resume; return the contents of result.json.

    Where other processes still have batches to make, there is no result.json,
    and "shards_missing" counts them.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return experiment.run(self, options)

  def prepare(self, options: RunOptions) -> Work:
    """See `experiment.Experiment`."""
    recipe = recipe_of(self.method)
    # An independent batch does not depend on who makes it: each process is one
    # device on a CPU, as are the processes that a launcher starts.
    mesh = parse_mesh(options.mesh, 1 if self.independent else CPU_DEVICES)
    teacher, card = teachers.load(self.teacher)
    student = teachers.load(self.student)[0] if self.student else None
    verifier = teachers.load(self.verifier)[0] if self.verifier else None
    self._check(teacher, verifier, recipe)
    if self.steps is not None:
      recipe = dataclasses.replace(recipe, synthesis_steps=self.steps)
    plan = self._plan(options, recipe, teacher, student)
    if self.steps is None and not recipe.memory_size:
      raise UsageError(
        f"--steps is not given and {type(self.method).__name__} learns for as"
        " long as a student does: give the steps before each batch, such as"
        " --steps 1000"
      )
    shards.require()
    process = None
    if self.independent:
      if mesh.shape[MODEL] > 1:
        raise UsageError(
          f"--mesh {options.mesh}: independent batches do not shard parameters:"
          f" give --mesh {DATA}=N"
        )
      mesh = local_mesh(mesh)
      process, _ = process_rank()
    inputs = Inputs(self, plan, options, teacher, student, verifier, mesh)
    return Work(
      command="synthesize",
      mesh=mesh,
      identity={"teacher_sha256": card.weights_sha256},
      carry_out=functools.partial(_carry_out, inputs),
      independent_process=process,
    )

  def _plan(self, options, recipe, teacher, student) -> Plan:
    """Plan the batches; the method refuses networks that it cannot use."""
    method = self.method
    size = min(distil.images_per_step(method, recipe), self.num_images)
    soft_labels = False
    # With assets, which take long to make, it is planned again.
    if not isinstance(method, Prepares):
      key = jax.random.key(self.seed)

      def first(key, teacher, student):
        context = Context(teacher=teacher, student=student, recipe=recipe)
        return method.sample(key, method.init(key, context), size)

      sample = jax.eval_shape(first, key, teacher, student)
      soft_labels = sample.soft_labels is not None
    layout = shards.Layout(
      options.workdir / "dataset",
      -(-self.num_images // size),
      teacher.spec,
      soft_labels=soft_labels,
    )
    return Plan(method, recipe, size, self.num_images, layout)

  def _check(self, teacher, verifier, recipe):
    """Refuse settings and networks that do not fit together."""
    size = distil.images_per_step(self.method, recipe)
    if size < 1:
      raise UsageError(f"--synthesis-batch-size is {size}: give 1 or more")
    if verifier is not None and verifier.spec.classes != teacher.spec.classes:
      raise UsageError(
        f"--verifier {self.verifier} has {verifier.spec.classes} classes and"
        f" the teacher {teacher.spec.classes}: give a network of the teacher's"
        " classes"
      )


class Inputs(NamedTuple):
  """Settings and networks for making batches."""

  config: Synthesize
  plan: Plan
  options: RunOptions
  teacher: Network
  student: Network | None
  verifier: Network | None
  mesh: jax.sharding.Mesh


def recipe_of(method: Synthesizer) -> Recipe:
  """Return the recipe of the method's paper, else the default."""
  return method.recipe if isinstance(method, HasRecipe) else Recipe()


def _carry_out(inputs: Inputs, _: Any) -> Finished:
  config, plan = inputs.config, inputs.plan
  context = plan.context(inputs.teacher, inputs.student, None)
  assets = run_assets.make(
    inputs.options.workdir, [plan.method], config.seed, context
  )
  networks = inputs.teacher, inputs.student
  if assets:
    size, method, key = plan.size, plan.method, jax.random.key(config.seed)
    sample = jax.eval_shape(
      lambda *args: method.sample(key, plan.init(key, *args), size),
      *networks,
      assets,
    )
    soft_labels = sample.soft_labels is not None
    layout = dataclasses.replace(plan.layout, soft_labels=soft_labels)
    plan = dataclasses.replace(plan, layout=layout)
  (teacher, student), assets = placement.put((networks, assets), inputs.mesh)
  plan = dataclasses.replace(plan, assets=assets)
  inputs = inputs._replace(plan=plan, teacher=teacher, student=student)
  if inputs.config.independent:
    return independent_batches.make(inputs)
  return _make_in_sequence(inputs)


def _make_in_sequence(inputs: Inputs) -> Finished:
  """Make the batches of a method that goes on from one to the next."""
  config, plan, options, teacher, student, verifier, _ = inputs
  method, key = plan.method, jax.random.key(config.seed)
  advance_chunk = synthesis_plan.make_advance(plan, key, teacher, student)

  @jax.jit
  def restart(state, index, key, teacher, student, assets):
    if not isinstance(method, Restarts):
      return state  # a generator goes on as it is
    key = distil.stream_key(key, distil.RESTART, index)
    context = plan.context(teacher, student, assets, index * plan.steps)
    return method.restart(key, state, context)

  def advance(state, index):
    if index and index % plan.chunks == 0:
      number = index // plan.chunks
      state = restart(state, number, key, teacher, student, plan.assets)
    return advance_chunk(state, index)

  writes = jax.process_index() == 0
  check = synthesis_plan.make_check(
    plan, options, key, teacher, verifier, writes
  )
  loop = Loop(
    title=f"synthesize {type(method).__name__}",
    state=placement.create(
      plan.init,
      distil.stream_key(key, distil.INIT, 0),
      teacher,
      student,
      plan.assets,
    ),
    rounds=plan.layout.shards * plan.chunks,
    advance=advance,
    observe=lambda state, done: check(state, done, gather),
    observe_every=plan.chunks,
    images_per_round=plan.chunk * plan.size,
    steps_per_round=plan.chunk,
  )
  outcome = drive(options, loop)
  result = synthesis_plan.result(
    config, plan, outcome.history, outcome.throughput
  )
  if writes:
    shards.finish(plan.layout, plan.counts)
  return Finished(result)
