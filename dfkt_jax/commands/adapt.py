"""`dfkt adapt`: a source network meets unlabelled images of another domain."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from rich.console import Console

from dfkt_jax import files, parallel, teachers, workdir
from dfkt_jax.adaptation import diagnostics
from dfkt_jax.adaptation.answers import make_look
from dfkt_jax.adaptation.contract import Adapter, Batch
from dfkt_jax.adaptation.course import Course
from dfkt_jax.commands import evaluation, summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.commands.openworld import CACHE
from dfkt_jax.data.pool import ImagePool, open_pool
from dfkt_jax.data.stream import Stream, put
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluate import make_predict, score
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
  source, card = teachers.load(config.source)
  dataset = evaluation.load(config.eval_dataset, source)
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
  mesh = parallel.make_mesh(options.devices)
  with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
    source = parallel.replicate(source, mesh)
    judge = _Judge(source, dataset) if dataset else None
    with Stream(_Rows(pool), course.batch_size, config.seed) as stream:
      state, pace = _adapt(
        config, course, options, source, pool, stream, mesh, judge
      )
    network = jax.device_get(config.method.network(state.method))
    result = {
      "command": "adapt",
      "method": type(config.method).__name__,
      "source_sha256": card.weights_sha256,
      "arch": card.arch,
      "target": config.target,
      "target_images": len(pool),
      "seed": config.seed,
      "steps": course.steps,
      "eval_dataset": config.eval_dataset,
      **summary.accuracies(options.workdir),
      **(judge.verdict(network) if judge else {}),
      "warnings": _warnings(options.workdir, course.epoch(len(pool)), source),
      **summary.cost(pace, course.batch_size),
    }
    if jax.process_index() == 0:
      name = type(config.method).__name__
      teachers.save(
        options.workdir / "network",
        network,
        teachers.describe(
          network,
          card.arch,
          naming=card.naming,
          source=f"dfkt adapt {name} of {card.source}",
          extras=card.extras,
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
  """The only reader of labels."""

  def __init__(self, source, dataset):
    self._dataset, self._predict = dataset, make_predict()
    self._source = self._score(source)

  def __call__(self, network) -> dict[str, float]:
    found = self._score(network)
    return {
      "eval/accuracy": found["accuracy"],
      "eval/mean_class_accuracy": found["mean_class_accuracy"],
    }

  def verdict(self, network) -> dict[str, Any]:
    """Source and adapted network, class by class."""
    found = self._score(network)
    return {
      "source_accuracy": self._source["accuracy"],
      "source_mean_class_accuracy": self._source["mean_class_accuracy"],
      "mean_class_accuracy": found["mean_class_accuracy"],
      "per_class_accuracy": found["per_class_accuracy"],
      "class_names": list(network.spec.class_names),
    }

  def _score(self, network):
    logits = self._predict(network, self._dataset.images)
    return score(logits, self._dataset.labels, network.spec.classes)


def _adapt(config, course, options, source, pool, stream, mesh, judge):
  method = config.method
  key = jax.random.key(config.seed)
  look = make_look(pool.images, mesh)
  epoch = course.epoch(len(pool))
  answers = look(source)
  init = functools.partial(method.init, course=course)
  state = jax.jit(init)(jax.random.fold_in(key, 0), source, answers)
  decide = jax.jit(diagnostics.decide)
  diagnose = jax.jit(diagnostics.diagnose)
  relabel = jax.jit(functools.partial(_relabel, method, course))
  step = jax.jit(functools.partial(_step, method, course), donate_argnums=0)
  network = jax.jit(method.network)
  # What the network says after so many steps.
  latest = (0, answers)

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
    found = jax.device_get(diagnose(answers, state.decisions, source, adapted))
    classes = source.spec.classes
    for sentence in diagnostics.complaints(found, done // epoch, classes):
      _say(f"warning: {sentence}")
    metrics = {f"target/{k}": float(v) for k, v in found._asdict().items()}
    return {**metrics, **(judge(adapted) if judge else {})}

  return drive(
    options,
    title=f"adapt {type(method).__name__}",
    state=_State(state, decide(answers)),
    rounds=course.steps,
    advance=advance,
    observe=observe,
    observe_every=epoch,
    images_per_round=course.batch_size,
    stream=stream,
  )


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
