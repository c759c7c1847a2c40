"""What every result.json says in the same words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dfkt_jax import files, parallel, teachers
from dfkt_jax import network as net
from dfkt_jax.commands.evaluation import Evaluation
from dfkt_jax.driver import Pace, RunOptions
from dfkt_jax.metrics import read_metrics
from dfkt_jax.network import Network


def accuracies(workdir: Path) -> dict[str, float | None]:
  """Last, best and mean over the evaluations of the run; None without any."""
  rows = read_metrics(workdir)
  curve = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
  return {
    "accuracy_last": curve[-1] if curve else None,
    "accuracy_best": max(curve, default=None),
    "accuracy_mean": round(float(np.mean(curve)), 6) if curve else None,
  }


def cost(pace: Pace, images_per_round: int) -> dict[str, float | str | None]:
  """Speed, wall time over all resumptions, and the mesh that it ran on.

  Images count once per optimiser step; compilation is left out of the speed,
  which is None where a run came back with nothing left to do.
  """
  speed = pace.rounds_per_second * images_per_round
  devices = jax.sharding.get_abstract_mesh().size
  return {
    "images_per_second": round(speed, 1) if speed else None,
    "wall_seconds": round(pace.wall_seconds, 1),
    "device": f"{devices} x {jax.devices()[0].device_kind}",
  }


def finish(
  options: RunOptions,
  config: Any,
  student: Network,
  teacher_card: teachers.Card,
  judge: Evaluation | None,
  extra: Mapping[str, Any],
) -> dict:
  """Writes WORKDIR/student and result.json, whose contents it answers.

  `config` is a distillation: it has method, student, seed and eval_dataset.
  """
  student = parallel.gather(student)
  last = read_metrics(options.workdir)[-1]
  name = type(config.method).__name__
  result = {
    "command": "distill",
    "method": name,
    "teacher_sha256": teacher_card.weights_sha256,
    "teacher_arch": teacher_card.arch,
    "student_arch": config.student,
    "teacher_parameters": teacher_card.parameters,
    "student_parameters": net.num_parameters(student),
    "seed": config.seed,
    "eval_dataset": config.eval_dataset,
    **accuracies(options.workdir),
    "agreement": last.get("eval/agreement"),
    "agreement_in_training": round(last["distillation/agreement"], 6),
    "teacher_accuracy": judge.teacher_accuracy if judge else None,
    **extra,
  }
  if jax.process_index() == 0:
    teachers.save(
      options.workdir / "student",
      student,
      teachers.describe(student, config.student, source=f"dfkt distill {name}"),
      replace=True,
    )
    files.write_json(options.workdir / "result.json", result)
  return result
