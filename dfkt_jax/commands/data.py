"""`dfkt data write`: any dataset in a form that is streamed from disk."""

import dataclasses
from pathlib import Path
import re

import tyro

from dfkt_jax import data
from dfkt_jax.data import builder
from dfkt_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Write:
  """Writes datasets as the splits of one TFDS dataset in ArrayRecord form.

  DATA_DIR/NAME/1.0.0 is then read by tfds:NAME, by tfds:DATA_DIR/NAME/1.0.0
  and, in Python, by tfds.builder(NAME, data_dir=DATA_DIR). Images are kept bit
  by bit. Run it again after it was killed, or to write again what is missing.

  All splits are loaded into memory first: height x width x channels bytes an
  image, so 12 GB for a million of 64x64x3. Prepare a larger dataset with tfds
  itself.
  """

  name: tyro.conf.Positional[str]  # small letters, digits and underscores
  # NAME=DATA, such as train=fashion_mnist/train; give it once a split
  split: tyro.conf.UseAppendAction[tuple[str, ...]]
  data_dir: Path | None = None  # default $TFDS_DATA_DIR, ~/tensorflow_datasets
  size: tuple[int, int] | None = None  # height width of folder: and zip: images
  overwrite: bool = False  # replace another dataset of this name

  def run(self) -> str:
    """Write them; return a line for the user."""
    texts = _splits(self.split)
    builder.check_name(self.name)
    if self.size is not None and min(self.size) < 1:
      raise UsageError(f"--size is {self.size}: give a height and a width")
    splits = {name: data.load(text, self.size) for name, text in texts.items()}
    data_dir = self.data_dir or builder.default_data_dir()
    place = builder.write(self.name, splits, data_dir, self.overwrite)
    counts = ", ".join(
      f"{name} {len(dataset.labels):,}" for name, dataset in splits.items()
    )
    at_home = data_dir == builder.default_data_dir()
    text = f"tfds:{self.name}" if at_home else f"tfds:{place}"
    return f"{place}: {counts} images; read it as {text}/{next(iter(splits))}"


def _splits(words: tuple[str, ...]) -> dict[str, str]:
  if not words:
    raise UsageError(
      "--split is not given: name each split and its data, such as --split"
      " train=fashion_mnist/train"
    )
  splits = {}
  for word in words:
    name, equals, text = word.partition("=")
    # "all" is what tfds calls all splits together.
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name) or (
      name == "all" or not equals
    ):
      raise UsageError(
        f"--split {word}: expected NAME=DATA, such as train=fashion_mnist/train"
      )
    if not text or name in splits:
      what = "is given twice" if name in splits else "names no data"
      raise UsageError(
        f"--split {name} {what}: give NAME=DATA once for each split"
      )
    splits[name] = text
  return splits
