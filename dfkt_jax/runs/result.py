"""Figures that every result.json has under the same names."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dfkt_jax.runs.driver import Throughput


def accuracies(
  history: Sequence[Mapping[str, Any]], metric: str = "accuracy"
) -> dict[str, float | None]:
  """Last, best and mean of a metric over the evaluations; None without any.

  Args:
    metric: its name in the log, behind "eval/"; a task's `headline`.
  """
  name = f"eval/{metric}"
  curve = [row[name] for row in history if name in row]
  return {
    f"{metric}_last": curve[-1] if curve else None,
    f"{metric}_best": max(curve, default=None),
    f"{metric}_mean": round(float(np.mean(curve)), 6) if curve else None,
  }


def cost(
  throughput: Throughput, images_per_round: int
) -> dict[str, float | str | None]:
  """Speed, wall time over all resumptions, and the devices of the mesh.

  Images count once per optimizer step. The speed leaves compilation out, and is
  None if a resumed run had nothing left to do.
  """
  speed = throughput.rounds_per_second * images_per_round
  devices = jax.sharding.get_abstract_mesh().size
  return {
    "images_per_second": round(speed, 1) if speed else None,
    "wall_seconds": round(throughput.wall_seconds, 1),
    "device": f"{devices} x {jax.devices()[0].device_kind}",
  }
