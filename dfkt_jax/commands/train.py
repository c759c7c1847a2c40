"""`dfkt teacher train`: a teacher where there is no file of one."""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from dfkt_jax import (
  data,
  evaluate,
  files,
  models,
  parallel,
  placement,
  teachers,
  workdir,
)
from dfkt_jax import network as net
from dfkt_jax.commands import summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data.examples import Examples, moments, open_examples
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.distillation import supervised
from dfkt_jax.distillation.supervised import Supervised
from dfkt_jax.driver import Pace, RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.network import InputSpec, Network

STEPS_PER_ROUND = 20

# (state, round) -> (state, infos), as `drive` wants it.
Advance = Callable[[supervised.State, int], tuple[supervised.State, Any]]


@dataclasses.dataclass(frozen=True)
class TrainTeacher:
  """Trains a classifier on labelled images.

  The network ends up in WORKDIR/network. The last iterate is kept, whatever the
  evaluation says. A tfds: dataset is streamed from disk and may be larger than
  memory; any other is loaded onto the device.
  """

  recipe: Supervised
  arch: str  # see 'dfkt list archs'
  dataset: str  # what it learns from, such as digits/train
  eval_dataset: str | None = None  # labelled images that are held out
  seed: int = 0
  evaluations: int = 10  # during the run

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json."""
    check_numbers(self)
    mesh = parallel.named_mesh(options.mesh)
    settings = {"command": "teacher train", **workdir.settings(self)}
    train_set = open_examples(self.dataset) or data.load(self.dataset)
    held_out = data.load(self.eval_dataset) if self.eval_dataset else None
    spec = input_spec(train_set)
    module = models.build(self.arch, spec.classes)
    check(self.recipe, train_set)
    with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
      result = workdir.finished(options.workdir)
      if result is not None:
        return result
      key = jax.random.key(self.seed)
      network = net.init(jax.random.fold_in(key, 0), module, spec)
      network, pace = train(
        options,
        self.recipe,
        jax.random.fold_in(key, 1),
        placement.place(network, mesh),
        train_set,
        held_out,
        self.evaluations,
        f"train {self.arch}",
        mesh,
        self.seed,
      )
      return self._finish(options, network, pace)

  def _finish(self, options, network, pace):
    result = {
      "command": "teacher train",
      "method": "supervised",
      "arch": self.arch,
      "parameters": net.num_parameters(network),
      "dataset": self.dataset,
      "eval_dataset": self.eval_dataset,
      "seed": self.seed,
      "steps": self.recipe.steps,
      **summary.accuracies(options.workdir),
      **summary.cost(pace, STEPS_PER_ROUND * self.recipe.batch_size),
    }
    network = parallel.gather(network)
    if jax.process_index() == 0:
      source = f"dfkt teacher train on {self.dataset}"
      teachers.save(
        options.workdir / "network",
        network,
        teachers.describe(network, self.arch, source=source),
        replace=True,
      )
      files.write_json(options.workdir / "result.json", result)
    return result


def check(recipe: Supervised, dataset: data.Dataset | Examples) -> None:
  """Refuses a recipe that the dataset cannot feed."""
  count = len(dataset if isinstance(dataset, Examples) else dataset.images)
  if not 1 <= recipe.batch_size <= count:
    raise UsageError(
      f"--batch-size is {recipe.batch_size} and dataset {dataset.name} has"
      f" {count} images: give 1 to {count}"
    )
  if recipe.steps < 1:
    raise UsageError(f"--steps is {recipe.steps}: give a number from 1 up")


def input_spec(dataset: data.Dataset | Examples) -> InputSpec:
  """The input of a network for this dataset, with its pixels' moments."""
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
    classes=classes,
    class_names=tuple(dataset.class_names),
  )


def train(
  options: RunOptions,
  recipe: Supervised,
  key: jax.Array,
  network: Network,
  train_set: data.Dataset | Examples,
  held_out: data.Dataset | None,
  evaluations: int,
  title: str,
  mesh: Mesh,
  seed: int,
) -> tuple[Network, Pace]:
  """Trains `network`, resuming from the workdir; `seed` orders a stream."""
  predict = evaluate.make_predict()

  def observe(state: supervised.State, done: int):
    if held_out is None:
      return {}
    result = evaluate.evaluate(state.network, held_out, predict=predict)
    return {"eval/accuracy": result["accuracy"]}

  rounds = -(-recipe.steps // STEPS_PER_ROUND)
  with contextlib.ExitStack() as stack:
    stream = None
    if isinstance(train_set, Examples):
      stream = stack.enter_context(Stream(train_set, recipe.batch_size, seed))
      advance = _from_stream(recipe, key, stream, mesh)
    else:
      advance = _from_memory(recipe, key, evaluate.fit_to(network, train_set))
    state, pace = drive(
      options,
      title=title,
      state=recipe.init(network),
      rounds=rounds,
      advance=advance,
      observe=observe,
      observe_every=max(1, rounds // max(1, evaluations)),
      images_per_round=STEPS_PER_ROUND * recipe.batch_size,
      steps_per_round=STEPS_PER_ROUND,
      stream=stream,
    )
  return state.network, pace


def _from_memory(
  recipe: Supervised, key: jax.Array, train_set: data.Dataset
) -> Advance:
  """Rounds on a training set that is on the device as a whole."""
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
  """Rounds on u8[steps, batch, height, width, channels] off a stream."""

  def body(state, step, key, pixels, labels):
    at = step % STEPS_PER_ROUND
    return _step(recipe, key, state, step, pixels[at], labels[at])

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
  return loops.whole(
    lambda state, index, key, pixels, labels: repeat(
      state, index * STEPS_PER_ROUND, key, pixels, labels
    )
  )


def _step(recipe, key, state, step, images, labels):
  """Steps past the last one, in a last round that is not full, do nothing."""
  new, info = recipe.step(key, state, step, images, labels)
  keep = step < recipe.steps
  return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, state), info
