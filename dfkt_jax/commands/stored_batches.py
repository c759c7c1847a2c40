"""Images of a transfer set on disk for `dfkt distill offline`.

`config` is a Distill whose source is Offline.
"""

from typing import Any

import jax
import numpy as np

from dfkt_jax import images
from dfkt_jax.commands.feed import GRID_IMAGES, Feed, kd_of
from dfkt_jax.data.transfer_set import TransferSet, open_transfer_set
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec
from dfkt_jax.runs.driver import RunOptions


def check(config: Any) -> None:
  """Refuse an evaluation set that the student would learn from."""
  plain = lambda text: (text or "").removesuffix("/test")
  if plain(config.transfer_set) == plain(config.eval_dataset):
    raise UsageError(
      f"--transfer-set and --eval-dataset are both {config.eval_dataset}:"
      " evaluate on images that the student does not learn from, such as"
      " digits/train and digits/test"
    )


def load(config: Any, spec: InputSpec) -> TransferSet:
  """Open the transfer set for a teacher of `spec`.

  Raises:
    UsageError: it cannot be read, or lacks the labels that the learner needs.
  """
  transfer_set = open_transfer_set(config.transfer_set, spec)
  _check(config.learner, transfer_set, spec)
  return transfer_set


def _check(learner: Any, transfer_set: TransferSet, spec: InputSpec) -> None:
  """Refuse a learner that needs labels which the transfer set lacks."""
  name, kd = transfer_set.name, kd_of(learner)
  if kd is None:
    return
  if kd.target == "stored" and not transfer_set.has_soft_labels:
    raise UsageError(
      f"--target stored and --transfer-set {name} has no soft labels of"
      f" {spec.classes} classes: use --target teacher, or images that 'dfkt"
      " synthesize' made by soft-target or zskd"
    )
  if kd.target == "stored" and kd.mix:
    raise UsageError(
      f"--mix is {kd.mix} and makes images that no soft label was stored for:"
      " use --target teacher, or --mix 0"
    )
  if kd.hard_label_weight and not transfer_set.has_labels:
    raise UsageError(
      f"--hard-label-weight is {kd.hard_label_weight} and the labels of"
      f" --transfer-set {name} are not the teacher's {spec.classes} classes:"
      " give images of those, or --hard-label-weight 0"
    )


def feed(config: Any, options: RunOptions, transfer_set: TransferSet) -> Feed:
  """Return the images, and show a grid of some from all over the set."""
  if jax.process_index() == 0:
    count = min(GRID_IMAGES, len(transfer_set))
    few = np.linspace(0, len(transfer_set) - 1, count).astype(int)
    grid = images.grid(np.stack([transfer_set[int(i)].images for i in few]))
    images.save_png(options.workdir / "images" / "transfer_set.png", grid)
  figures = {
    "transfer_set": config.transfer_set,
    "transfer_images": len(transfer_set),
  }
  return Feed(transfer_set, figures=figures)
