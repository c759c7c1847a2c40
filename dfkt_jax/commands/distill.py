"""`dfkt distill`: a smaller student from a teacher, without its data.

Any learner works with any source of images: a synthesizer, a selection from a
pool of unlabelled images, or a transfer set on disk.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from flax import linen as nn
import jax
from jax.sharding import Mesh

from dfkt_jax import images, models, teachers
from dfkt_jax import network as net
from dfkt_jax.commands import pool_batches, stored_batches
from dfkt_jax.commands.feed import GRID_IMAGES, Feed, kd_of
from dfkt_jax.commands.pool_batches import CACHE
from dfkt_jax.contracts import (
  Context,
  Learner,
  NonNegative,
  Positive,
  Prepares,
  Seed,
  Selector,
  Summarizes,
  Synthesizer,
)
from dfkt_jax.data.stream import Stream, put, stack
from dfkt_jax.devices.loops import Loops
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.devices.processes import gather
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation.evaluator import Evaluator, load_evaluation_set
from dfkt_jax.network import Network, placement
from dfkt_jax.rounds import distil
from dfkt_jax.runs import assets as run_assets
from dfkt_jax.runs import experiment
from dfkt_jax.runs.driver import Loop, Outcome, RunOptions, drive
from dfkt_jax.runs.experiment import Finished, Work
from dfkt_jax.runs.result import accuracies, cost

S = TypeVar("S", bound=Synthesizer | Selector | Offline)
L = TypeVar("L", bound=Learner)


@dataclasses.dataclass(frozen=True)
class Distill(Generic[S, L]):
  """Distills a teacher into a student without the teacher's data.

  Images come from a synthesizer, from a --pool of unlabelled images of another
  kind, or from a --transfer-set on disk. The student is saved in
  WORKDIR/student and can be evaluated and exported like any network;
  WORKDIR/result.json holds the figures. A selection from a pool is
  WORKDIR/selection.csv.
  """

  source: S
  learner: L
  recipe: Recipe
  teacher: Path  # directory of the teacher ('dfkt teacher import' makes one)
  student: str  # architecture of the student, see 'dfkt list archs'
  # folder:DIR, zip:FILE, npz:FILE, tfds:NAME: unlabelled images to select from
  pool: str | None = None
  # images to select from the pool (default: 50,000, or those of --selection)
  num_images: Annotated[int | None, Positive] = None
  selection: Path | None = None  # a selection.csv to use instead of selecting
  # images to learn from, such as tfds:WORKDIR/dataset, for 'distill offline'
  transfer_set: str | None = None
  eval_dataset: str | None = None  # real images that evaluation alone reads
  seed: Annotated[int, Seed] = 0
  evaluations: Annotated[int, NonNegative] = 20  # of the student in the run
  pool_cache: Path = CACHE  # where decoded images and predictions are kept

  def run(self, options: RunOptions) -> dict:
    """Run to the end, or resume; return the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return experiment.run(self, options)

  def prepare(self, options: RunOptions) -> Work:
    """See `experiment.Experiment`."""
    _check_source(self)
    mesh = parse_mesh(options.mesh)
    teacher, card = teachers.load(self.teacher)
    module = models.build(self.student, teacher.spec.classes)
    parts = (self.source, self.learner)
    # Shapes may depend on assets, which take long to make.
    if not any(isinstance(part, Prepares | Summarizes) for part in parts):
      key = jax.random.key(self.seed)
      jax.eval_shape(functools.partial(begin, self, module), key, teacher)
    dataset = load_evaluation_set(self.eval_dataset, teacher)
    identity: dict[str, Any] = {"teacher_sha256": card.weights_sha256}
    load: Callable[[], Any] = lambda: None
    if isinstance(self.source, Selector):
      identity |= pool_batches.identity(self)
      load = lambda: pool_batches.load(self, options, teacher, card, mesh)
    elif isinstance(self.source, Offline):
      transfer_set = stored_batches.load(self, teacher.spec)
      identity |= {"transfer_images": len(transfer_set)}
      load = lambda: transfer_set
    inputs = _Inputs(self, options, mesh, teacher, card, module, dataset)
    return Work(
      command="distill",
      mesh=mesh,
      identity=identity,
      carry_out=functools.partial(_carry_out, inputs),
      load=load,
      ignored=("pool_cache",),
    )


class _Inputs(NamedTuple):
  config: Distill
  options: RunOptions
  mesh: Mesh
  teacher: Network
  card: teachers.Card
  module: nn.Module  # the student's
  dataset: Any  # for evaluation, or None


def _check_source(config: Distill) -> None:
  """Refuse settings that the kind of source has no use for, or lacks."""
  source, recipe = config.source, config.recipe
  name = type(source).__name__
  wanted = {
    "--pool": (config.pool, isinstance(source, Selector)),
    "--transfer-set": (config.transfer_set, isinstance(source, Offline)),
  }
  for flag, (value, needed) in wanted.items():
    if needed and value is None:
      raise UsageError(
        f"{flag} is not given and {name} takes its images from there: give"
        " images, see 'dfkt list datasets'"
      )
    if value is not None and not needed:
      raise UsageError(
        f"{flag} is {value} and {name} does not read images: leave it out, or"
        " use a source that does, see 'dfkt list methods'"
      )
  selecting = {
    "--selection": config.selection,
    "--num-images": config.num_images,
  }
  for flag, value in selecting.items():
    if value is not None and not isinstance(source, Selector):
      raise UsageError(
        f"{flag} is {value} and {name} does not select from a pool: leave it"
        " out"
      )
  if isinstance(source, Offline):
    stored_batches.check(config)
  kd = kd_of(config.learner)
  if isinstance(source, Selector) and kd and kd.target == "stored":
    raise UsageError(
      "--target stored needs images that were made for soft labels, and those"
      " of a pool have none: use --target teacher"
    )
  if distil.has_batches(source):
    stores = {
      "--memory-size": recipe.memory_size,
      "--warmup-rounds": recipe.warmup_rounds,
      "--offline": recipe.offline,
    }
    for flag, value in stores.items():
      if value:
        raise UsageError(
          f"{flag} is {value} and {name} learns from images on disk: it is for"
          " methods that make their images; leave it out"
        )
  else:
    _check_memory(source, recipe)


def _check_memory(source: Any, recipe: Recipe) -> None:
  """Refuse sizes of the replay buffer that do not describe a run."""
  made = distil.images_per_step(source, recipe)
  if made < 1:
    raise UsageError(
      f"--synthesis-batch-size is {made}: give a whole number from 1 up"
    )
  if recipe.offline and (recipe.warmup_rounds or not recipe.memory_size):
    raise UsageError(
      "--offline fills a replay buffer before the student begins and"
      f" --memory-size is {recipe.memory_size}, --warmup-rounds"
      f" {recipe.warmup_rounds}: give --memory-size the size of the transfer"
      " set, and no --warmup-rounds"
    )
  if recipe.memory_size and recipe.memory_size < made:
    raise UsageError(
      f"--memory-size is {recipe.memory_size} and a round makes {made} images:"
      f" give {made} or more, or 0 for no replay buffer"
    )


def begin(
  config: Distill,
  module: nn.Module,
  key: jax.Array,
  teacher: Network,
  assets: Any = None,
) -> distil.State:
  """Return the state before the first round; `module` is the student's."""
  student_key = distil.stream_key(key, distil.INIT, 1)
  student = net.init(student_key, module, teacher.spec)
  return distil.init(
    key,
    config.source,
    config.learner,
    config.recipe,
    teacher,
    student,
    assets,
  )


def _carry_out(inputs: _Inputs, loaded: Any) -> Finished:
  config, options, mesh, teacher, card, module, dataset = inputs
  evaluator = Evaluator(teacher, dataset) if dataset else None
  feed = Feed()
  if isinstance(config.source, Selector):
    feed = pool_batches.feed(config, options, loaded)
  elif isinstance(config.source, Offline):
    feed = stored_batches.feed(config, options, loaded)
  key = jax.random.key(config.seed)
  with contextlib.ExitStack() as stack:
    stream = None
    if feed.items is not None:
      stream = stack.enter_context(
        Stream(feed.items, config.recipe.batch_size, config.seed)
      )
    context = Context(teacher=teacher, recipe=config.recipe)
    parts = (config.source, config.learner)
    assets = run_assets.make(
      options.workdir, parts, config.seed, context, feed.assets
    )
    teacher, assets = placement.put((teacher, assets), mesh)
    state = placement.create(
      functools.partial(begin, config, module), key, teacher, assets
    )
    loop = _loop(
      config,
      options,
      key,
      teacher,
      assets,
      state,
      stream,
      mesh,
      evaluator,
    )
    outcome = drive(options, loop)
  return _finish(config, outcome, evaluator, card, feed)


def _loop(
  config, options, key, teacher, assets, state, stream, mesh, evaluator
) -> Loop:
  """The rounds of a run, on the current mesh."""
  source, learner, recipe = config.source, config.learner, config.recipe
  loops = Loops.for_backend()
  make = functools.partial(distil.make_round, source, learner, recipe, loops)
  warm_up = make(learn=False)
  learn = make(synthesize=not recipe.offline)
  rounds = distil.all_rounds(source, recipe)
  warmup = distil.warmup_rounds(source, recipe)
  count = distil.batches_per_round(source, recipe)
  shown = GRID_IMAGES
  if not distil.has_batches(source):
    # A replay buffer may hold no more than one batch yet.
    shown = min(GRID_IMAGES, distil.images_per_step(source, recipe))
  preview = jax.jit(
    lambda key, state: distil.preview(key, source, state, shown)
  )

  def advance(state, index):
    batches = None
    if stream is not None:
      batches = stack([next(stream) for _ in range(count)])
      batches = put(batches, mesh, axis=1)
    step = warm_up if index < warmup else learn
    return step(state, index, key, teacher, assets, batches)

  def observe(state, done):
    if isinstance(source, Synthesizer):
      grid = images.grid(gather(preview(key, state).images))
      if jax.process_index() == 0:
        name = f"{done * recipe.student_steps:06d}.png"
        images.save_png(options.workdir / "images" / name, grid)
    if evaluator is None or done <= warmup:
      return {}
    return evaluator(learner.student(state.learner))

  return Loop(
    title=f"distill {type(source).__name__}",
    state=state,
    rounds=rounds,
    advance=advance,
    observe=observe,
    observe_every=max(1, rounds // max(1, config.evaluations)),
    images_per_round=_images_per_round(config),
    steps_per_round=recipe.student_steps,
    stream=stream,
  )


def _images_per_round(config: Distill) -> int:
  """The mean over rounds, a batch counted once per optimizer step."""
  source, recipe = config.source, config.recipe
  learning = recipe.student_steps * recipe.batch_size
  if distil.has_batches(source):
    return learning
  rounds = distil.all_rounds(source, recipe)
  synthesis = recipe.synthesis_steps * distil.images_per_step(source, recipe)
  total = distil.synthesis_rounds(source, recipe) * synthesis
  total += distil.learning_rounds(recipe) * learning
  return round(total / rounds)


def _images_synthesized(config: Distill) -> int:
  """The images that the student could learn from: stored or fresh ones."""
  source, recipe = config.source, config.recipe
  if not isinstance(source, Synthesizer):
    return 0
  if recipe.memory_size:
    rounds = distil.synthesis_rounds(source, recipe)
    made = rounds * distil.images_per_step(source, recipe)
    return min(made, recipe.memory_size) if recipe.offline else made
  steps = distil.learning_rounds(recipe) * recipe.student_steps
  return steps * recipe.batch_size


def _finish(
  config: Distill,
  outcome: Outcome,
  evaluator: Evaluator | None,
  card: teachers.Card,
  feed: Feed,
) -> Finished:
  source, recipe = config.source, config.recipe
  student = gather(config.learner.student(outcome.state.learner))
  last = outcome.history[-1]
  name = type(source).__name__
  steps = distil.learning_rounds(recipe) * recipe.student_steps
  agreement = last.get("distillation/agreement")
  result = {
    "command": "distill",
    "method": name,
    "learner": type(config.learner).__name__,
    "teacher_sha256": card.weights_sha256,
    "teacher_arch": card.arch,
    "student_arch": config.student,
    "teacher_parameters": card.parameters,
    "student_parameters": net.num_parameters(student),
    "seed": config.seed,
    "eval_dataset": config.eval_dataset,
    **accuracies(outcome.history, student.spec.task.headline),
    "agreement": last.get("eval/agreement"),
    "agreement_in_training": (
      None if agreement is None else round(agreement, 6)
    ),
    "teacher_accuracy": evaluator.teacher_accuracy if evaluator else None,
    "rounds": distil.all_rounds(source, recipe),
    "steps": recipe.steps if isinstance(source, Offline) else steps,
    **feed.figures,
    "images_synthesized": _images_synthesized(config),
    **cost(outcome.throughput, _images_per_round(config)),
  }
  description = teachers.describe(
    student, config.student, source=f"dfkt distill {name}"
  )
  return Finished(result, {"student": (student, description)})
