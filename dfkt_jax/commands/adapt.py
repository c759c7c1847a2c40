"""`dfkt adapt`: a source network meets unlabelled images of another domain."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from dfkt_jax import data, files, parallel, placement, teachers, workdir
from dfkt_jax.adaptation import banks, diagnostics
from dfkt_jax.adaptation.answers import make_look
from dfkt_jax.adaptation.centroids import sure
from dfkt_jax.adaptation.contract import Adapter, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.commands import embedding, evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.commands.openworld import CACHE
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluate import make_predict, open_set_score, score, share
from dfkt_jax.metrics import read_metrics

M = TypeVar("M", bound=Adapter)


@dataclasses.dataclass(frozen=True)
class Adapt(Generic[M]):
  """Adapts a source model to unlabelled images of another domain.

  No image of the source is needed and no label of the target is read; the
  adapted network is WORKDIR/network.
  """

  method: M
  course: Course
  source: Path  # directory of the source network
  target: str  # unlabelled images, see 'dfkt list datasets'; labels are ignored
  eval_dataset: str | None = None  # labelled images that evaluation alone reads
  class_map: Path | None = None  # JSON: its class names to the source's or null
  oracle: bool = False  # also log accuracies on the target, whose labels it has
  seed: int = 0
  pool_cache: Path = CACHE  # where decoded images are kept

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json.

    Raises:
      DfktError: bad input, a loss that is not finite, or a stop signal.
    """
    return _run(self, options)


class _State(NamedTuple):
  method: Any
  decisions: jax.Array  # i32[rows], an epoch ago


def _run(config: Adapt, options: RunOptions) -> dict:
  check_numbers(config)
  if config.class_map and not config.eval_dataset:
    raise UsageError(
      f"--class-map {config.class_map} maps the classes of --eval-dataset, and"
      " there is none: give one, or leave it out"
    )
  mesh = parallel.named_mesh(options.mesh)
  source, card = teachers.load(config.source)
  dataset = evaluation.load(config.eval_dataset, source, config.class_map)
  settings = {
    "command": "adapt",
    **workdir.settings(dataclasses.replace(config, pool_cache=None)),
    "source_sha256": card.weights_sha256,
  }
  workdir.check(options.workdir, settings)
  result = workdir.finished(options.workdir)
  if result is not None:
    return result
  cache = config.pool_cache.expanduser()
  pool = open_pool(config.target, source.spec.shape, cache, say=_say)
  course = _course(config, pool)
  labels = _target_labels(config, pool)
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    source = placement.place(source, mesh)
    judge = _Judge(source, dataset, config) if dataset else None
    with Stream(_Rows(pool), course.batch_size, config.seed) as stream:
      state, pace = _adapt(
        config, course, options, source, pool, stream, mesh, judge, labels
      )
    network = parallel.gather(config.method.network(state.method))
    # A method may make a network of another architecture than the source's.
    made = getattr(config.method, "arch", "")
    result = {
      "command": "adapt",
      "method": type(config.method).__name__,
      "source_sha256": card.weights_sha256,
      "arch": made or card.arch,
      "target": config.target,
      "target_images": len(pool),
      "seed": config.seed,
      "steps": course.steps,
      "eval_dataset": config.eval_dataset,
      **summary.accuracies(options.workdir),
      **(judge.verdict(network) if judge else {}),
      **_oracle_verdict(options.workdir),
      "notes": [
        *_left_out(pool),
        *_warnings(options.workdir, course.epoch(len(pool)), source),
      ],
      **summary.cost(pace, course.batch_size),
    }
    if jax.process_index() == 0:
      name = type(config.method).__name__
      teachers.save(
        options.workdir / "network",
        network,
        teachers.describe(
          network,
          made or card.arch,
          naming=None if made else card.naming,
          source=f"dfkt adapt {name} of {card.source}",
          extras=None if made else card.extras,
        ),
        replace=True,
      )
      files.write_json(options.workdir / "result.json", result)
    return result


def _course(config, pool) -> Course:
  course = config.course
  counts = {"--steps": course.steps, "--epochs": course.epochs}
  if not course.steps and course.epochs < 1:
    raise UsageError(
      f"--steps is {counts['--steps']} and --epochs {counts['--epochs']}: give"
      " one of them from 1 up"
    )
  if not 2 <= course.batch_size <= len(pool):
    raise UsageError(
      f"--batch-size is {course.batch_size} and --target {config.target} has"
      f" {len(pool)} images: give 2 to {len(pool)}"
    )
  return course.over(len(pool))


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The target as a source of a stream: images and their numbers."""

  pool: ImagePool

  def __len__(self) -> int:
    return len(self.pool)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32]:
    return self.pool.images[index], np.int32(index)


class _Judge:
  """The only reader of the evaluation set."""

  def __init__(self, source, dataset, config):
    self._dataset, self._predict = dataset, make_predict()
    # As many classes as the source has stand for all that it does not know.
    self._open = bool((dataset.labels == source.spec.classes).any())
    if not self._open and getattr(config.method, "open_set", False):
      _say(
        "note: --open-set is on and --eval-dataset has no unknown class; name"
        " them with null in --class-map"
      )
    self._source = self._score(source)

  def __call__(self, network) -> dict[str, float]:
    found = self._score(network)
    names = ("accuracy", "mean_class_accuracy", "h_score")
    return {f"eval/{name}": found[name] for name in names if name in found}

  def verdict(self, network) -> dict[str, Any]:
    """Source and adapted network, class by class."""
    found = self._score(network)
    apart = ("accuracy", "images")
    names = list(network.spec.class_names)
    return {
      "source_accuracy": self._source["accuracy"],
      "source_mean_class_accuracy": self._source["mean_class_accuracy"],
      **{k: v for k, v in found.items() if k not in apart},
      "class_names": [*names, "unknown"] if names and self._open else names,
    }

  def _score(self, network):
    logits = self._predict(network, self._dataset.images)
    labels, classes = self._dataset.labels, network.spec.classes
    if not self._open:
      return score(logits, labels, classes)
    known = sure(jnp.asarray(logits), jnp.ones(len(logits), bool))
    return open_set_score(logits, np.asarray(known), labels, classes)


def _target_labels(config, pool) -> np.ndarray | None:
  """i32[images] where --oracle asks for them."""
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


def _adapt(config, course, options, source, pool, stream, mesh, judge, labels):
  method = config.method
  key = jax.random.key(config.seed)
  look = make_look(pool.images, mesh)
  epoch = course.epoch(len(pool))
  answers = look(source)
  init = functools.partial(method.init, course=course)
  state = placement.create(init, jax.random.fold_in(key, 0), source, answers)
  decide = jax.jit(diagnostics.decide)
  diagnose = jax.jit(diagnostics.diagnose)
  first = decide(answers)
  relabel = jax.jit(functools.partial(_relabel, method, course))
  step = jax.jit(functools.partial(_step, method, course), donate_argnums=0)
  network = jax.jit(method.network)
  shown = embedding.sample(len(pool))
  view = jax.jit(_view)
  before = embedding.View(*parallel.gather(view(answers, shown)))
  # What the network says after so many steps; kinds of warnings given.
  latest, said = (0, answers), set()

  def look_after(state, done):
    nonlocal latest
    if latest[0] != done:
      latest = (done, look(network(state.method)))
    return latest[1]

  def advance(state, index):
    if index and index % epoch == 0:
      answers = look_after(state, index)
      again = jax.random.fold_in(jax.random.fold_in(key, 1), index)
      if hasattr(method, "relabel"):
        state = state._replace(method=relabel(again, state.method, answers))
      state = state._replace(decisions=decide(answers))
    images, rows = put(next(stream), mesh)
    now = jax.random.fold_in(jax.random.fold_in(key, 2), index)
    method_state, info = step(state.method, now, images, rows)
    info = jax.tree.map(lambda x: x[None], info)
    return state._replace(method=method_state), {"adaptation": info}

  def observe(state, done):
    answers = look_after(state, done)
    adapted = network(state.method)
    found = parallel.gather(
      diagnose(answers, state.decisions, first, source, adapted)
    )
    classes = source.spec.classes
    for sentence in diagnostics.complaints(found, done // epoch, classes):
      if sentence.split(":")[0] not in said:
        _say(f"warning: {sentence}")
      said.add(sentence.split(":")[0])
    metrics = {f"target/{k}": float(v) for k, v in found._asdict().items()}
    if labels is not None:
      metrics |= _oracle(decide(answers), state.method, labels)
    return {**metrics, **(judge(adapted) if judge else {})}

  state, pace = drive(
    options,
    title=f"adapt {type(method).__name__}",
    state=_State(state, first),
    rounds=course.steps,
    advance=advance,
    observe=observe,
    observe_every=epoch,
    images_per_round=course.batch_size,
    stream=stream,
  )
  last = look_after(state, course.steps)
  after = embedding.View(*parallel.gather(view(last, shown)))
  if jax.process_index() == 0:
    picture = embedding.draw(before, after, source.spec.class_names)
    if picture:
      path = options.workdir / "images" / "embedding.png"
      files.write_atomic(path, picture)
  return state, pace


def _view(answers, rows):
  logits = banks.read(answers.logits, rows)
  return banks.read(answers.features, rows), logits.argmax(1)


def _oracle(decisions, state, labels) -> dict[str, float]:
  """Accuracies on the target, of the network and of what it said online."""
  right = lambda said: share(parallel.gather(said)[: len(labels)] == labels)
  metrics = {"oracle/target_accuracy": right(decisions)}
  if hasattr(state, "decisions"):
    metrics["oracle/online_accuracy"] = right(state.decisions)
  return metrics


def _oracle_verdict(workdir) -> dict[str, float]:
  """What was last seen of the target's labels."""
  last = read_metrics(workdir)[-1]
  found = {k: v for k, v in last.items() if k.startswith("oracle/")}
  return {name.replace("/", "_"): value for name, value in found.items()}


def _left_out(pool) -> list[str]:
  if not pool.left_out:
    return []
  return [f"left out, as they cannot be read: {pool.left_out:,} target images"]


def _warnings(workdir, epoch, source) -> list[str]:
  """The first of each kind over the whole run, resumed or not."""
  found: dict[str, str] = {}
  for row in read_metrics(workdir):
    values = {
      name.removeprefix("target/"): value
      for name, value in row.items()
      if name.startswith("target/")
    }
    if values:
      diagnosis = diagnostics.Diagnosis(**values)
      done = row["step"] // epoch
      for sentence in diagnostics.complaints(
        diagnosis, done, source.spec.classes
      ):
        found.setdefault(sentence.split(":")[0], sentence)
  return list(found.values())


def _relabel(method, course, key, state, answers):
  return method.relabel(key, state, answers, course)


def _step(method, course, state, key, images, rows):
  images = parallel.split(images.astype("float32") / 255)
  return method.step(key, state, Batch(images, rows), course)


def _say(text: str) -> None:
  if jax.process_index() == 0:
    Console(stderr=True, soft_wrap=True).print(
      text, markup=False, highlight=False
    )
