"""`dfkt synthesize`: a teacher's images as a dataset."""

import dataclasses
from pathlib import Path
from typing import Generic, TypeVar

import jax
import numpy as np

from dfkt_jax import evaluate, files, images, parallel, teachers, workdir
from dfkt_jax.commands import summary
from dfkt_jax.commands.checks import check_numbers
from dfkt_jax.data import shards
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.driver import RunOptions, drive
from dfkt_jax.errors import UsageError
from dfkt_jax.loops import Loops
from dfkt_jax.metrics import read_metrics
from dfkt_jax.synthesis.contract import Synthesizer

M = TypeVar("M", bound=Synthesizer)
GRID_IMAGES = 64
# Optimiser steps between two log lines and chances to save or stop.
LOG_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Synthesize(Generic[M]):
  """Makes images from a teacher and writes them as a TFDS dataset.

  WORKDIR/dataset holds them in ArrayRecord form, one shard a batch, to be read
  as tfds:WORKDIR/dataset; WORKDIR/images a grid of each batch. Labels are the
  classes the images were made for, or else the teacher's decisions.
  """

  method: M
  teacher: Path  # directory of the teacher
  num_images: int = 1024
  steps: int | None = None  # of synthesis for a batch (default: the method's)
  student: Path | None = None  # network for methods that play against one
  verifier: Path | None = None  # an independent network that checks the labels
  seed: int = 0

  def run(self, options: RunOptions) -> dict:
    """Runs to the end, or resumes; the contents of result.json."""
    check_numbers(self)
    if self.num_images < 1:
      raise UsageError(f"--num-images is {self.num_images}: give 1 or more")
    if self.steps is not None and self.steps < 1:
      raise UsageError(f"--steps is {self.steps}: give 1 or more")
    teacher, _ = teachers.load(self.teacher)
    student = teachers.load(self.student)[0] if self.student else None
    verifier = teachers.load(self.verifier)[0] if self.verifier else None
    key = jax.random.key(self.seed)
    if transfers.images_per_step(self.method, _recipe(self.method)) < 1:
      raise UsageError("--synthesis-batch-size is 0: give 1 or more")
    jax.eval_shape(self.method.init, key, teacher, student)
    if self.steps is None and not _recipe(self.method).pool_size:
      raise UsageError(
        f"--steps is not given and {type(self.method).__name__} learns for as"
        " long as a student does: give the steps before each batch, such as"
        " --steps 1000"
      )
    shards.require()
    mesh = parallel.named_mesh(options.mesh)
    settings = {
      "command": "synthesize",
      **workdir.settings(self),
      "teacher_sha256": teachers.digest(self.teacher),
    }
    with workdir.claim(options.workdir, settings), jax.set_mesh(mesh):
      result = workdir.finished(options.workdir)
      if result is not None:
        return result
      teacher, student = parallel.replicate((teacher, student), mesh)
      return _run(self, options, teacher, student, verifier)


def _recipe(method):
  return getattr(method, "transfer", transfers.Transfer())


def _run(config, options, teacher, student, verifier):
  method = config.method
  recipe = _recipe(method)
  steps = config.steps or recipe.synthesis_steps
  batch = min(transfers.images_per_step(method, recipe), config.num_images)
  batches = -(-config.num_images // batch)
  chunk = max(d for d in range(1, LOG_STEPS + 1) if steps % d == 0)
  chunks = steps // chunk  # of a batch
  key = jax.random.key(config.seed)
  layout = shards.Layout(options.workdir / "dataset", batches, teacher.spec)
  predict = evaluate.make_predict()

  def step(state, index, key, teacher, student):
    key = transfers.stream(key, transfers.SYNTHESIS, index)
    return method.step(key, state, teacher, student)

  def restart(state, index, key, teacher, student):
    key = transfers.stream(key, transfers.RESTART, index)
    if hasattr(method, "restart"):
      return method.restart(key, state, teacher, student)
    # A generator goes on; pixels begin anew.
    return method.init(key, teacher, student) if recipe.pool_size else state

  loops = Loops.for_backend()
  repeat = loops.repeat(step, chunk)
  advance_chunk = loops.whole(
    lambda state, first, *rest: repeat(state, first, *rest)
  )
  restart = jax.jit(restart)
  sample = jax.jit(
    lambda key, state, index: method.sample(
      transfers.stream(key, transfers.HARVEST, index), state, batch
    )
  )

  def advance(state, index):
    if index and index % chunks == 0:
      state = restart(state, index // chunks, key, teacher, student)
    state, info = advance_chunk(state, index * chunk, key, teacher, student)
    return state, {"synthesis": info}

  def observe(state, done):
    number = done // chunks - 1
    pixels, labels, _ = parallel.gather(sample(key, state, number))
    count = min(batch, config.num_images - number * batch)
    pixels = np.round(pixels[:count] * 255).astype(np.uint8)
    decisions = predict(teacher, pixels).argmax(1)
    labels = np.where(labels[:count] < 0, decisions, labels[:count])
    metrics = {"verify/teacher": evaluate.share(decisions == labels)}
    if verifier is not None:
      seen = predict(verifier, pixels).argmax(1)
      metrics["verify/verifier"] = evaluate.share(seen == labels)
    if jax.process_index() == 0:
      shards.write(layout, number, pixels, labels)
      grid = images.grid(pixels[:GRID_IMAGES])
      images.save_png(options.workdir / "images" / f"{number:06d}.png", grid)
    return {**metrics, "images": number * batch + count}

  _, pace = drive(
    options,
    title=f"synthesize {type(method).__name__}",
    state=jax.jit(method.init)(
      transfers.stream(key, transfers.INIT, 0), teacher, student
    ),
    rounds=batches * chunks,
    advance=advance,
    observe=observe,
    observe_every=chunks,
    images_per_round=chunk * batch,
    steps_per_round=chunk,
  )
  return _finish(config, options, layout, pace, chunk * batch, steps)


def _finish(config, options, layout, pace, images_per_round, steps):
  rows = [row for row in read_metrics(options.workdir) if "images" in row]
  counts = np.diff([0, *(row["images"] for row in rows)])
  average = lambda name: (
    round(float(np.average([row[name] for row in rows], weights=counts)), 6)
    if name in rows[-1]
    else None
  )
  result = {
    "command": "synthesize",
    "method": type(config.method).__name__,
    "teacher_sha256": teachers.digest(config.teacher),
    "seed": config.seed,
    "steps": steps,
    "images_synthesized": config.num_images,
    "teacher_accuracy_on_targets": average("verify/teacher"),
    "verifier_accuracy_on_targets": average("verify/verifier"),
    "dataset": str(layout.directory),
    **summary.cost(pace, images_per_round),
  }
  if jax.process_index() == 0:
    shards.finish(layout, [int(count) for count in counts])
    files.write_json(options.workdir / "result.json", result)
  return result
