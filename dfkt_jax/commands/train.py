"""`dfkt teacher train`: a teacher where there is no file of one."""

import dataclasses

import jax
import jax.numpy as jnp

from dfkt_jax import data, evaluate, files, models, parallel, teachers, workdir
from dfkt_jax import network as net
from dfkt_jax.commands import summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.distillation import supervised
from dfkt_jax.distillation.supervised import Supervised
from dfkt_jax.driver import Pace, RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.network import InputSpec, Network

STEPS_PER_ROUND = 20


@dataclasses.dataclass(frozen=True)
class TrainTeacher:
  """Trains a classifier on labelled images.

  The network ends up in WORKDIR/network. The last iterate is kept, whatever the
  evaluation says.
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
    settings = {"command": "teacher train", **workdir.settings(self)}
    train_set = data.load(self.dataset)
    held_out = data.load(self.eval_dataset) if self.eval_dataset else None
    spec = input_spec(train_set)
    module = models.build(self.arch, spec.classes)
    check(self.recipe, train_set)
    mesh = parallel.make_mesh(options.devices)
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
        parallel.replicate(network, mesh),
        train_set,
        held_out,
        self.evaluations,
        f"train {self.arch}",
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
    if jax.process_index() == 0:
      network = jax.device_get(network)
      source = f"dfkt teacher train on {self.dataset}"
      teachers.save(
        options.workdir / "network",
        network,
        teachers.describe(network, self.arch, source=source),
        replace=True,
      )
      files.write_json(options.workdir / "result.json", result)
    return result


def check(recipe: Supervised, dataset: data.Dataset) -> None:
  """Refuses a recipe that the dataset cannot feed."""
  if not 1 <= recipe.batch_size <= len(dataset.images):
    raise UsageError(
      f"--batch-size is {recipe.batch_size} and dataset {dataset.name} has"
      f" {len(dataset.images)} images: give 1 to {len(dataset.images)}"
    )
  if recipe.steps < 1:
    raise UsageError(f"--steps is {recipe.steps}: give a number from 1 up")


def input_spec(dataset: data.Dataset) -> InputSpec:
  """The input of a network for this dataset, with its pixels' moments."""
  pixels = dataset.images.reshape(-1, dataset.images.shape[-1]) / 255
  classes = len(dataset.class_names) or int(dataset.labels.max()) + 1
  return InputSpec(
    *dataset.images.shape[1:],
    mean=tuple(round(float(m), 4) for m in pixels.mean(0)),
    std=tuple(round(max(float(s), 1e-3), 4) for s in pixels.std(0)),
    classes=classes,
    class_names=tuple(dataset.class_names),
  )


def train(
  options: RunOptions,
  recipe: Supervised,
  key: jax.Array,
  network: Network,
  train_set: data.Dataset,
  held_out: data.Dataset | None,
  evaluations: int,
  title: str,
) -> tuple[Network, Pace]:
  """Trains `network`, on the current mesh, resuming from the workdir."""
  train_set = evaluate.fit_to(network, train_set)
  pixels, labels = jnp.asarray(train_set.images), jnp.asarray(train_set.labels)
  predict = evaluate.make_predict()

  def body(state, step, key, pixels, labels):
    # Steps past the last one, in a last round that is not full, do nothing.
    new, info = recipe.step(key, state, step, pixels, labels)
    keep = step < recipe.steps
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, state), info

  loops = Loops.for_backend()
  repeat = loops.repeat(body, STEPS_PER_ROUND)
  step_round = loops.whole(
    lambda state, index, key, pixels, labels: repeat(
      state, index * STEPS_PER_ROUND, key, pixels, labels
    )
  )

  def advance(state, index):
    state, info = step_round(state, index, key, pixels, labels)
    return state, {"train": info}

  def observe(state: supervised.State, done: int):
    if held_out is None:
      return {}
    result = evaluate.evaluate(state.network, held_out, predict=predict)
    return {"eval/accuracy": result["accuracy"]}

  rounds = -(-recipe.steps // STEPS_PER_ROUND)
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
  )
  return state.network, pace
