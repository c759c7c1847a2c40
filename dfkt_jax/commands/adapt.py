"""`dfkt adapt`: a source network for unlabeled images of another domain."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from rich.console import Console

from dfkt_jax import data, files, teachers
from dfkt_jax.adaptation.centroids import sure
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.commands.pool_batches import CACHE
from dfkt_jax.contracts import (
  Adapter,
  ChangesArchitecture,
  Context,
  OpenSet,
  PredictsOnline,
  Seed,
)
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.devices.processes import gather
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation import diagnostics, embedding
from dfkt_jax.evaluation.evaluator import load_evaluation_set, make_predict
from dfkt_jax.evaluation.scores import open_set_score, score, share
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network, placement
from dfkt_jax.rounds import adapt as rounds
from dfkt_jax.rounds.target_predictions import make_predict_all
from dfkt_jax.runs import assets as run_assets
from dfkt_jax.runs import experiment
from dfkt_jax.runs.driver import Loop, Outcome, RunOptions, drive
from dfkt_jax.runs.experiment import Finished, Work
from dfkt_jax.runs.result import accuracies, cost

M = TypeVar("M", bound=Adapter)


@dataclasses.dataclass(frozen=True)
class Adapt(Generic[M]):
  """Adapts a source model to unlabelled images of another domain.

  No image of the source is needed and no label of the target is read; the
  adapted network is saved in WORKDIR/network.
  """

  method: M
  recipe: Recipe
  source: Path  # directory of the source network
  target: str  # unlabelled images, see 'dfkt list datasets'; labels are ignored
  eval_dataset: str | None = None  # labelled images that evaluation alone reads
  class_map: Path | None = None  # JSON: its class names to the source's or null
  oracle: bool = False  # also log accuracies on the target, whose labels it has
  seed: Annotated[int, Seed] = 0
  pool_cache: Path = CACHE  # where decoded images are kept

  def run(self, options: RunOptions) -> dict:
    """Run to the end, or resume; return the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return experiment.run(self, options)

  def prepare(self, options: RunOptions) -> Work:
    """See `experiment.Experiment`."""
    if self.class_map and not self.eval_dataset:
      raise UsageError(
        f"--class-map {self.class_map} maps the classes of --eval-dataset, and"
        " there is none: give one, or leave it out"
      )
    mesh = parse_mesh(options.mesh)
    source, card = teachers.load(self.source)
    dataset = load_evaluation_set(self.eval_dataset, source, self.class_map)
    inputs = _Inputs(self, options, mesh, source, card, dataset)
    return Work(
      command="adapt",
      mesh=mesh,
      identity={"source_sha256": card.weights_sha256},
      load=lambda: _load(self, source),
      carry_out=functools.partial(_carry_out, inputs),
      ignored=("pool_cache",),
    )


class _Inputs(NamedTuple):
  config: Adapt
  options: RunOptions
  mesh: Mesh
  source: Network
  card: teachers.Card
  dataset: Any  # for evaluation, or None


class _Target(NamedTuple):
  pool: ImagePool
  recipe: Recipe  # with its steps filled in
  labels: np.ndarray | None  # i32[images], where --oracle asks for them


def _load(config: Adapt, source: Network) -> _Target:
  cache = config.pool_cache.expanduser()
  pool = open_pool(config.target, source.spec.shape, cache, log=_say)
  return _Target(pool, _recipe(config, pool), _target_labels(config, pool))


def _recipe(config, pool) -> Recipe:
  recipe = config.recipe
  if not recipe.steps and recipe.epochs < 1:
    raise UsageError(
      f"--steps is {recipe.steps} and --epochs {recipe.epochs}: give one of"
      " them from 1 up"
    )
  if not 2 <= recipe.batch_size <= len(pool):
    raise UsageError(
      f"--batch-size is {recipe.batch_size} and --target {config.target} has"
      f" {len(pool)} images: give 2 to {len(pool)}"
    )
  return recipe.with_steps_for(len(pool))


def _target_labels(config, pool) -> np.ndarray | None:
  """Read i32[images] labels where --oracle asks for them."""
  if not config.oracle:
    return None
  try:
    labels = data.load(config.target, pool.images.shape[1:3]).labels
  except UsageError as error:
    raise UsageError(
      f"--oracle reads the labels of --target, but {error}; or leave it out"
    ) from None
  if len(labels) != len(pool):
    raise UsageError(
      f"--oracle needs a label for each of the {len(pool)} images of --target"
      f" {config.target} and it has {len(labels)}: leave --oracle out"
    )
  return labels


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The target as a source of a stream: images and their numbers."""

  pool: ImagePool

  def __len__(self) -> int:
    return len(self.pool)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
    return self.pool.images[index], np.int32(index)


class _Evaluator:
  """The only reader of the evaluation set."""

  def __init__(self, source: Network, dataset: data.Dataset, method: Adapter):
    self._dataset, self._predict = dataset, make_predict()
    # The label after the last class stands for all that the source lacks.
    self._open = bool((dataset.labels == source.spec.classes).any())
    wants_unknown = isinstance(method, OpenSet) and method.open_set
    if not self._open and wants_unknown:
      _say(
        "note: --open-set is on and --eval-dataset has no unknown class; name"
        " them with null in --class-map"
      )
    self._source = self._score(source)

  def __call__(self, network: Network) -> dict[str, float]:
    """Return metrics for the log."""
    found = self._score(network)
    names = ("accuracy", "mean_class_accuracy", "h_score")
    return {f"eval/{name}": found[name] for name in names if name in found}

  def verdict(self, network: Network) -> dict[str, Any]:
    """Score the source and the adapted network, class by class."""
    found = self._score(network)
    elsewhere = ("accuracy", "images")
    names = list(network.spec.class_names)
    return {
      "source_accuracy": self._source["accuracy"],
      "source_mean_class_accuracy": self._source["mean_class_accuracy"],
      **{k: v for k, v in found.items() if k not in elsewhere},
      "class_names": [*names, "unknown"] if names and self._open else names,
    }

  def _score(self, network):
    logits = self._predict(network, self._dataset.images)
    labels, classes = self._dataset.labels, network.spec.classes
    if not self._open:
      return score(logits, labels, classes)
    known = sure(jnp.asarray(logits), jnp.ones(len(logits), bool))
    return open_set_score(logits, np.asarray(known), labels, classes)


def _carry_out(inputs: _Inputs, target: _Target) -> Finished:
  config, options, mesh, source, card, dataset = inputs
  context = Context(teacher=source, recipe=target.recipe)
  assets = run_assets.make(
    options.workdir, [config.method], config.seed, context
  )
  source, assets = placement.put((source, assets), mesh)
  evaluator = _Evaluator(source, dataset, config.method) if dataset else None
  items, size = _Rows(target.pool), target.recipe.batch_size
  with Stream(items, size, config.seed) as stream:
    outcome, warnings = _adapt(
      inputs, source, assets, target, stream, evaluator
    )
  return _finish(config, card, target, outcome, evaluator, warnings)


def _adapt(inputs, source, assets, target, stream, evaluator):
  config, options, mesh, *_ = inputs
  method, recipe, images = config.method, target.recipe, target.pool.images
  key = jax.random.key(config.seed)
  predict_all = make_predict_all(images, mesh)
  epoch = recipe.steps_per_epoch(len(images))
  predictions = predict_all(source)
  state = rounds.init(key, method, recipe, source, predictions, assets)
  programs = rounds.compile_programs(method, recipe)
  predicted = rounds.Predicted(predict_all, programs.network, predictions)
  first = state.decisions
  diagnose = jax.jit(diagnostics.diagnose)
  decide = jax.jit(diagnostics.decide, static_argnums=1)
  points, task = embedding.sample(len(images)), source.spec.task
  view = jax.jit(_view, static_argnums=2)
  before = embedding.View(*gather(view(predictions, points, task)))
  warnings: dict[str, str] = {}

  def observe(state, done):
    predictions = predicted(state, done)
    adapted = programs.network(state.method)
    found = gather(
      diagnose(predictions, state.decisions, first, source, adapted)
    )
    classes = source.spec.classes
    for sentence in diagnostics.warnings(found, done // epoch, classes):
      if sentence.split(":")[0] not in warnings:
        _say(f"warning: {sentence}")
      warnings.setdefault(sentence.split(":")[0], sentence)
    metrics = {f"target/{k}": float(v) for k, v in found._asdict().items()}
    if target.labels is not None:
      decisions = decide(predictions, task)
      metrics |= _oracle(method, decisions, state.method, target.labels)
    return {**metrics, **(evaluator(adapted) if evaluator else {})}

  loop = Loop(
    title=f"adapt {type(method).__name__}",
    state=state,
    rounds=recipe.steps,
    advance=rounds.make_advance(
      method,
      recipe,
      programs,
      key,
      source,
      assets,
      epoch,
      predicted,
      lambda: put(next(stream), mesh),
    ),
    observe=observe,
    observe_every=epoch,
    images_per_round=recipe.batch_size,
    stream=stream,
  )
  outcome = drive(options, loop)
  last = predicted(outcome.state, recipe.steps)
  after = embedding.View(*gather(view(last, points, task)))
  if jax.process_index() == 0:
    picture = embedding.draw(before, after, source.spec.class_names)
    if picture:
      path = options.workdir / "images" / "embedding.png"
      files.write_atomic(path, picture)
  return outcome, _all_warnings(outcome, epoch, source.spec.classes)


def _view(predictions, rows, task):
  features, logits = (
    feature_bank.read(bank, rows)
    for bank in (predictions.features, predictions.logits)
  )
  return features, task.decisions(logits)


def _oracle(method, decisions, state, labels) -> dict[str, float]:
  """Score on the target, for the network and for its online decisions."""
  right = lambda found: share(gather(found)[: len(labels)] == labels)
  metrics = {"oracle/target_accuracy": right(decisions)}
  if isinstance(method, PredictsOnline):
    online = method.online_decisions(state)
    metrics["oracle/online_accuracy"] = right(online)
  return metrics


def _all_warnings(outcome: Outcome, epoch: int, classes: int) -> list[str]:
  """Return the first warning of each kind, over resumed runs too."""
  found: dict[str, str] = {}
  for row in outcome.history:
    values = {
      name.removeprefix("target/"): value
      for name, value in row.items()
      if name.startswith("target/")
    }
    diagnosis = diagnostics.Diagnosis(**values)  # type: ignore
    done = int(row["step"]) // epoch
    for sentence in diagnostics.warnings(diagnosis, done, classes):
      found.setdefault(sentence.split(":")[0], sentence)
  return list(found.values())


def _finish(
  config: Adapt,
  card: teachers.Card,
  target: _Target,
  outcome: Outcome,
  evaluator: _Evaluator | None,
  warnings: list[str],
) -> Finished:
  method, last = config.method, outcome.history[-1]
  network = gather(method.network(outcome.state.method))
  made = method.arch if isinstance(method, ChangesArchitecture) else ""
  name = type(method).__name__
  oracle = {
    key.replace("/", "_"): value
    for key, value in last.items()
    if key.startswith("oracle/")
  }
  result = {
    "command": "adapt",
    "method": name,
    "source_sha256": card.weights_sha256,
    "arch": made or card.arch,
    "target": config.target,
    "target_images": len(target.pool),
    "seed": config.seed,
    "steps": target.recipe.steps,
    "eval_dataset": config.eval_dataset,
    **accuracies(outcome.history),
    **(evaluator.verdict(network) if evaluator else {}),
    **oracle,
    "notes": [*_left_out(target.pool), *warnings],
    **cost(outcome.throughput, target.recipe.batch_size),
  }
  description = teachers.describe(
    network,
    made or card.arch,
    naming=None if made else card.naming,
    source=f"dfkt adapt {name} of {card.source}",
    extras=None if made else card.extras,
  )
  return Finished(result, {"network": (network, description)})


def _left_out(pool: ImagePool) -> list[str]:
  if not pool.left_out:
    return []
  return [f"left out, as they cannot be read: {pool.left_out:,} target images"]


def _say(text: str) -> None:
  if jax.process_index() == 0:
    Console(stderr=True, soft_wrap=True).print(
      text, markup=False, highlight=False
    )
