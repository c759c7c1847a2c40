"""`dfkt teacher train`: a teacher where there is no file of one."""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dfkt_jax import data, models, teachers
from dfkt_jax import network as net
from dfkt_jax.contracts import NonNegative, Seed
from dfkt_jax.data.examples import Examples, moments, open_examples
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.devices.loops import Loops, select
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.devices.processes import gather
from dfkt_jax.distillation import supervised
from dfkt_jax.distillation.supervised import Supervised
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation.evaluator import evaluate, fit_to, make_predict
from dfkt_jax.network import Classification, InputSpec, Network, placement
from dfkt_jax.runs import experiment
from dfkt_jax.runs.driver import Loop, Outcome, RunOptions, drive
from dfkt_jax.runs.experiment import Finished, Work
from dfkt_jax.runs.result import accuracies, cost

STEPS_PER_ROUND = 20

# (state, round) -> (state, infos), as `drive` calls it.
Advance = Callable[[supervised.State, int], tuple[supervised.State, Any]]


@dataclasses.dataclass(frozen=True)
class TrainTeacher:
  """Trains a classifier on labelled images.

  The network is saved in WORKDIR/network. The last iterate is kept, whatever
  the evaluation finds. A tfds: dataset is streamed from disk and may be larger
  than memory; any other is loaded onto the device.
  """

  recipe: Supervised
  arch: str  # see 'dfkt list archs'
  dataset: str  # what it learns from, such as digits/train
  eval_dataset: str | None = None  # labelled images that are held out
  seed: Annotated[int, Seed] = 0
  evaluations: Annotated[int, NonNegative] = 10  # during the run

  def run(self, options: RunOptions) -> dict:
    """Run to the end, or resume; return the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return experiment.run(self, options)

  def prepare(self, options: RunOptions) -> Work:
    """See `experiment.Experiment`."""
    mesh = parse_mesh(options.mesh)
    train_set = open_examples(self.dataset) or data.load(self.dataset)
    held_out = data.load(self.eval_dataset) if self.eval_dataset else None
    spec = input_spec(train_set)
    module = models.build(self.arch, spec.classes)
    check_batch_size(self.recipe, train_set)
    inputs = _Inputs(self, options, mesh, train_set, held_out)
    return Work(
      command="teacher train",
      mesh=mesh,
      identity={},
      carry_out=lambda _: _carry_out(inputs, module, spec),
    )


class _Inputs(NamedTuple):
  config: TrainTeacher
  options: RunOptions
  mesh: Mesh
  train_set: data.Dataset | Examples
  held_out: data.Dataset | None


def _carry_out(inputs: _Inputs, module: Any, spec: InputSpec) -> Finished:
  config, mesh = inputs.config, inputs.mesh
  key = jax.random.key(config.seed)
  network = net.init(jax.random.fold_in(key, 0), module, spec)
  outcome = _train(
    inputs, jax.random.fold_in(key, 1), placement.put(network, mesh)
  )
  network = gather(outcome.state.network)
  result = {
    "command": "teacher train",
    "method": "supervised",
    "arch": config.arch,
    "parameters": net.num_parameters(network),
    "dataset": config.dataset,
    "eval_dataset": config.eval_dataset,
    "seed": config.seed,
    "steps": config.recipe.steps,
    **accuracies(outcome.history),
    **cost(outcome.throughput, STEPS_PER_ROUND * config.recipe.batch_size),
  }
  source = f"dfkt teacher train on {config.dataset}"
  card = teachers.describe(network, config.arch, source=source)
  return Finished(result, {"network": (network, card)})


def check_batch_size(
  recipe: Supervised, dataset: data.Dataset | Examples
) -> None:
  """Refuse a batch size that the dataset cannot feed."""
  count = len(dataset if isinstance(dataset, Examples) else dataset.images)
  if not 1 <= recipe.batch_size <= count:
    raise UsageError(
      f"--batch-size is {recipe.batch_size} and dataset {dataset.name} has"
      f" {count} images: give 1 to {count}"
    )


def input_spec(dataset: data.Dataset | Examples) -> InputSpec:
  """Return the input of a network for this dataset, with its pixel moments."""
  if isinstance(dataset, Examples):
    shape, classes = dataset.shape, dataset.classes
    mean, std = moments(dataset)
  else:
    shape = dataset.images.shape[1:]
    pixels = dataset.images.reshape(-1, shape[-1]) / 255
    mean, std = pixels.mean(0), pixels.std(0)
    classes = len(dataset.class_names) or int(dataset.labels.max()) + 1
  return InputSpec(
    *shape,
    mean=tuple(round(float(m), 4) for m in mean),
    std=tuple(round(max(float(s), 1e-3), 4) for s in std),
    task=Classification(classes, tuple(dataset.class_names)),
  )


def _train(inputs: _Inputs, key: jax.Array, network: Network) -> Outcome:
  """Train `network`, resuming from the workdir."""
  config, options, mesh, train_set, held_out = inputs
  recipe, predict = config.recipe, make_predict()

  def observe(state: supervised.State, done: int):
    if held_out is None:
      return {}
    found = evaluate(state.network, held_out, predict=predict)
    return {"eval/accuracy": found["accuracy"]}

  rounds = -(-recipe.steps // STEPS_PER_ROUND)
  with contextlib.ExitStack() as stack:
    stream = None
    if isinstance(train_set, Examples):
      stream = Stream(train_set, recipe.batch_size, config.seed)
      stream = stack.enter_context(stream)
      advance = _from_stream(recipe, key, stream, mesh)
    else:
      advance = _from_memory(recipe, key, fit_to(network, train_set))
    loop = Loop(
      title=f"train {config.arch}",
      state=recipe.init(network),
      rounds=rounds,
      advance=advance,
      observe=observe,
      observe_every=max(1, rounds // max(1, config.evaluations)),
      images_per_round=STEPS_PER_ROUND * recipe.batch_size,
      steps_per_round=STEPS_PER_ROUND,
      stream=stream,
    )
    return drive(options, loop)


def _from_memory(
  recipe: Supervised, key: jax.Array, train_set: data.Dataset
) -> Advance:
  """Make rounds on a training set that is on the device as a whole."""
  pixels, labels = jnp.asarray(train_set.images), jnp.asarray(train_set.labels)

  def body(state, step, key, pixels, labels):
    batch = recipe.batch(key, step, pixels, labels)
    return _step(recipe, key, state, step, *batch)

  step_round = _compile(body)

  def advance(state, index):
    state, info = step_round(state, index, key, pixels, labels)
    return state, {"train": info}

  return advance


def _from_stream(
  recipe: Supervised, key: jax.Array, stream: Stream, mesh: Mesh
) -> Advance:
  """Make rounds on u8[steps, batch, height, width, channels] of a stream."""

  def body(state, step, key, pixels, labels):
    place = step % STEPS_PER_ROUND
    return _step(recipe, key, state, step, pixels[place], labels[place])

  step_round = _compile(body)

  def advance(state, index):
    batches = [next(stream) for _ in range(STEPS_PER_ROUND)]
    batches = put(tuple(map(np.stack, zip(*batches))), mesh, axis=1)
    state, info = step_round(state, index, key, *batches)
    return state, {"train": info}

  return advance


def _compile(body):
  loops = Loops.for_backend()
  repeat = loops.repeat(body, STEPS_PER_ROUND)
  return loops.jit_round(
    lambda state, index, key, pixels, labels: repeat(
      state, index * STEPS_PER_ROUND, key, pixels, labels
    )
  )


def _step(recipe, key, state, step, images, labels):
  """Take a step, or none past the last one, in a last round."""
  new, info = recipe.step(key, state, step, images, labels)
  return select(step < recipe.steps, new, state), info
