"""What `dfkt synthesize` makes, batch by batch, and what it says of it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from dfkt_jax import evaluate, images, teachers
from dfkt_jax.commands import summary
from dfkt_jax.data import shards
from dfkt_jax.data.dataset import fit_images
from dfkt_jax.distillation import transfer as transfers
from dfkt_jax.driver import Pace, RunOptions
from dfkt_jax.loops import Loops
from dfkt_jax.network import Network
from dfkt_jax.synthesis import contract
from dfkt_jax.synthesis.contract import Batch, Synthesizer

GRID_IMAGES = 64
# Optimiser steps between two log lines and chances to save or stop.
LOG_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Plan:
  """So many images in batches, each of them a shard of the dataset.

  A round is a chunk of a batch; rounds and steps count over all batches.
  """

  method: Synthesizer
  steps: int  # of synthesis for a batch
  size: int  # images of a batch; the last may have fewer
  images: int
  layout: shards.Layout

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
  def stages(self) -> list[tuple[Synthesizer, int]]:
    return contract.stages(self.method, self.steps)

  @property
  def counts(self) -> list[int]:
    """Images of every shard."""
    starts = range(0, self.images, self.size)
    return [min(self.size, self.images - start) for start in starts]


def make_advance(
  plan: Plan, key: jax.Array, teacher: Network, student: Network | None
) -> Callable[[Any, int], tuple[Any, dict]]:
  """advance(state, round) -> (state, infos), as `drive` wants it."""
  loops = Loops.for_backend()
  rounds = []
  for method, length in plan.stages:
    # Of as many programs as there are stages, each compiled once.
    repeat = loops.whole(loops.repeat(_stepper(method), plan.chunk))
    rounds += [repeat] * (length // plan.chunk)

  def advance(state, index):
    repeat = rounds[index % plan.chunks]
    state, info = repeat(state, index * plan.chunk, key, teacher, student)
    return state, {"synthesis": info}

  return advance


def _stepper(method):
  def step(state, index, key, teacher, student):
    key = transfers.stream(key, transfers.SYNTHESIS, index)
    return method.step(key, state, teacher, student)

  return step


def make_look(
  plan: Plan,
  options: RunOptions,
  key: jax.Array,
  teacher: Network,
  verifier: Network | None,
  writes: bool,
) -> Callable[[Any, int, Callable[[Batch], Batch]], Mapping[str, float]]:
  """look(state, done, fetch) -> metrics of the batch of the last round.

  It `writes` the batch as a shard and as a grid. `fetch` gets it to the host.
  """
  predict = evaluate.make_predict()
  sample = jax.jit(
    lambda key, state, number: plan.method.sample(
      transfers.stream(key, transfers.HARVEST, number), state, plan.size
    )
  )

  def look(state, done, fetch):
    number = done // plan.chunks - 1
    count = plan.counts[number]
    batch = jax.tree.map(lambda x: x[:count], fetch(sample(key, state, number)))
    pixels = np.round(batch.images * 255).astype(np.uint8)
    decisions = predict(teacher, pixels).argmax(1)
    labels = np.where(batch.labels < 0, decisions, batch.labels)
    metrics = {"verify/teacher": evaluate.share(decisions == labels)}
    if verifier is not None:
      shown = fit_images(pixels, *verifier.spec.shape)
      seen = predict(verifier, shown).argmax(1)
      metrics["verify/verifier"] = evaluate.share(seen == labels)
    if writes:
      shards.write(plan.layout, number, pixels, labels, batch.soft_labels)
      grid = images.grid(pixels[:GRID_IMAGES])
      images.save_png(options.workdir / "images" / f"{number:06d}.png", grid)
    return {**metrics, "images": number * plan.size + count}

  return look


def result(
  config: Any, plan: Plan, rows: Sequence[Mapping[str, Any]], pace: Pace
) -> dict:
  """The contents of result.json, from the log of all batches in their order.

  `config` is a Synthesize.
  """
  looks = [row for row in rows if "images" in row]

  def average(name):
    if name not in looks[-1]:
      return None
    values = [row[name] for row in looks]
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
    **summary.cost(pace, plan.chunk * plan.size),
  }
