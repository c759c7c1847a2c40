"""What every result.json says in the same words."""

from pathlib import Path

import jax
import numpy as np

from dfkt_jax.driver import Pace
from dfkt_jax.metrics import read_metrics


def accuracies(workdir: Path) -> dict[str, float | None]:
  """Last, best and mean over the evaluations of the run; None without any."""
  rows = read_metrics(workdir)
  curve = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
  return {
    "accuracy_last": curve[-1] if curve else None,
    "accuracy_best": max(curve, default=None),
    "accuracy_mean": round(float(np.mean(curve)), 6) if curve else None,
  }


def cost(pace: Pace, images_per_round: int) -> dict[str, float | str]:
  """Speed, wall time over all resumptions, and what it ran on.

  Images count once per optimiser step; compilation is left out of the speed.
  """
  speed = pace.rounds_per_second * images_per_round
  return {
    "images_per_second": round(speed, 1),
    "wall_seconds": round(pace.wall_seconds, 1),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
  }
