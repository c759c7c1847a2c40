"""Images on the host that a distillation learns from."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from dfkt_jax.data.stream import Source
from dfkt_jax.distillation.kd import KD

GRID_IMAGES = 64


class Feed(NamedTuple):
  """Images on the host; without any, a source that makes its own."""

  items: Source | None = None  # of a stream: Batches of one u8 image
  assets: Mapping[str, Any] = {}  # arrays that the selector made of the pool
  figures: Mapping[str, Any] = {}  # for result.json


def kd_of(learner: Any) -> KD | None:
  """Return the KD settings of a learner: itself, or one of its fields."""
  if isinstance(learner, KD):
    return learner
  for field in dataclasses.fields(learner):
    part = getattr(learner, field.name)
    if isinstance(part, KD):
      return part
  return None
