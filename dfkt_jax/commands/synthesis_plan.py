"""The batches of `dfkt synthesize`: how they are made, checked and reported."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from dfkt_jax import images, teachers
from dfkt_jax.contracts import (
  Batch,
  Context,
  Step,
  Synthesizer,
  step_functions,
)
from dfkt_jax.data import shards
from dfkt_jax.data.dataset import resize_images
from dfkt_jax.devices.loops import Loops
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.evaluation.evaluator import make_predict
from dfkt_jax.evaluation.scores import share
from dfkt_jax.network import Network
from dfkt_jax.rounds import distil
from dfkt_jax.rounds.returned import check_sample, check_step
from dfkt_jax.runs.driver import RunOptions, Throughput
from dfkt_jax.runs.result import cost

GRID_IMAGES = 64
# Optimizer steps between two log lines and chances to save or stop.
LOG_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Plan:
  """A number of images in batches, each of them a shard of the dataset.

  A round is a chunk of a batch; rounds and steps count over all batches.
  """

  method: Synthesizer
  recipe: Recipe  # whose `synthesis_steps` a batch takes
  size: int  # images of a batch; the last may have fewer
  images: int
  layout: shards.Layout
  assets: Any = None  # of `Prepares`, on the mesh

  @property
  def steps(self) -> int:
    """Steps of synthesis for a batch."""
    return self.recipe.synthesis_steps

  @property
  def chunk(self) -> int:
    """Steps of a round."""
    lengths = [length for _, length in self.stages]
    return max(
      steps
      for steps in range(1, LOG_STEPS + 1)
      if not any(length % steps for length in lengths)
    )

  @property
  def chunks(self) -> int:
    """Rounds of a batch."""
    return self.steps // self.chunk

  @property
  def stages(self) -> list[tuple[Step, int]]:
    """Step functions of a batch, with the steps that each takes."""
    return step_functions(self.method, self.steps)

  @property
  def counts(self) -> list[int]:
    """Images of every shard."""
    starts = range(0, self.images, self.size)
    return [min(self.size, self.images - start) for start in starts]

  @property
  def all_steps(self) -> int:
    """Steps of synthesis for all batches."""
    return self.layout.shards * self.steps

  def context(
    self,
    teacher: Network,
    student: Network | None,
    assets: Any,
    step: Any = 0,
  ) -> Context:
    """Return what a step may read, after `step` steps over all batches."""
    return Context(
      teacher=teacher,
      student=student,  # type: ignore
      progress=step / self.all_steps,
      step=step,
      recipe=self.recipe,
      assets=assets,
    )

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network | None,
    assets: Any,
    step: Any = 0,
  ) -> Any:
    """Return the state before a batch."""
    return self.method.init(key, self.context(teacher, student, assets, step))


def make_advance(
  plan: Plan, key: jax.Array, teacher: Network, student: Network | None
) -> Callable[[Any, int], tuple[Any, dict]]:
  """Make advance(state, round) -> (state, infos), as `drive` calls it."""
  loops = Loops.for_backend()

  def take(step_of, state, index, key, teacher, student, assets):
    key = distil.stream_key(key, distil.SYNTHESIS, index)
    context = plan.context(teacher, student, assets, index)
    return check_step(plan.method, state, step_of(key, state, context))

  rounds = []
  for step_of, length in plan.stages:
    # One program a stage, each compiled once.
    body = functools.partial(take, step_of)
    repeat = loops.jit_round(loops.repeat(body, plan.chunk))
    rounds += [repeat] * (length // plan.chunk)

  def advance(state, index):
    repeat = rounds[index % plan.chunks]
    first = index * plan.chunk
    state, info = repeat(state, first, key, teacher, student, plan.assets)
    return state, {"synthesis": info}

  return advance


def make_check(
  plan: Plan,
  options: RunOptions,
  key: jax.Array,
  teacher: Network,
  verifier: Network | None,
  writes: bool,
) -> Callable[[Any, int, Callable[[Batch], Batch]], Mapping[str, float]]:
  """Make check(state, done, fetch) -> metrics of the batch of the last round.

  Args:
    writes: write the batch as a shard and as a grid, too.

  Returns:
    A function whose `fetch` brings a batch to the host.
  """
  predict = make_predict()
  sample = jax.jit(
    lambda key, state, number: check_sample(
      plan.method,
      plan.method.sample(
        distil.stream_key(key, distil.HARVEST, number), state, plan.size
      ),
    )
  )

  def check(state, done, fetch):
    number = done // plan.chunks - 1
    count = plan.counts[number]
    batch = jax.tree.map(lambda x: x[:count], fetch(sample(key, state, number)))
    pixels = np.round(batch.images * 255).astype(np.uint8)
    decisions = teacher.spec.task.decisions(predict(teacher, pixels))
    labels = decisions
    if batch.labels is not None:
      labels = np.where(batch.labels < 0, decisions, batch.labels)
    metrics = {"verify/teacher": share(decisions == labels)}
    if verifier is not None:
      shown = resize_images(pixels, *verifier.spec.shape)
      seen = verifier.spec.task.decisions(predict(verifier, shown))
      metrics["verify/verifier"] = share(seen == labels)
    if writes:
      shards.write(plan.layout, number, pixels, labels, batch.soft_labels)
      grid = images.grid(pixels[:GRID_IMAGES])
      images.save_png(options.workdir / "images" / f"{number:06d}.png", grid)
    return {**metrics, "images": number * plan.size + count}

  return check


def result(
  config: Any,
  plan: Plan,
  history: Sequence[Mapping[str, Any]],
  throughput: Throughput,
) -> dict:
  """Return the contents of result.json.

  Args:
    config: a Synthesize.
    history: the metrics of every batch, in their order.
  """

  def average(name):
    if name not in history[-1]:
      return None
    values = [row[name] for row in history]
    return round(float(np.average(values, weights=plan.counts)), 6)

  return {
    "command": "synthesize",
    "method": type(config.method).__name__,
    "teacher_sha256": teachers.digest(config.teacher),
    "seed": config.seed,
    "steps": plan.steps,
    "images_synthesized": config.num_images,
    "teacher_accuracy_on_targets": average("verify/teacher"),
    "verifier_accuracy_on_targets": average("verify/verifier"),
    "dataset": str(plan.layout.directory),
    **cost(throughput, plan.chunk * plan.size),
  }
