"""Tables and figures that commands print."""

from collections.abc import Iterable, Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dfkt_jax import methods

_DATASETS = {
  "digits[/train|/test]": "scikit-learn's 1,797 digits, 8x8; 500 held out",
  "fonts[/train|/test]": "digits drawn from matplotlib's fonts, 8x8",
  "fashion_mnist[/train|/test]": "Debian's dataset-fashion-mnist, 28x28",
  "idx:DIR[/train|/test]": "MNIST's file format, gzipped or not",
  "npz:FILE[/train|/test]": "arrays images u8[n,h,w,c] and labels [n]",
  "folder:DIR": "CLASS/NAME.jpg or .png",
  "zip:FILE": "the same in a zip file",
  "tfds:NAME[/split]": "a prepared TFDS dataset in ArrayRecord form",
}

MANY_CLASSES, WORST_CLASSES = 100, 10  # of more, only the worst are printed

# Words in the names of figures that are printed in percent.
_SHARES = ("accuracy", "agreement", "calibration_error", "h_score")


def show_result(result: Mapping[str, Any], workdir: Path) -> None:
  """Print the figures of a run and where its files are, from one process."""
  import jax  # here and not above: `dfkt list` needs none

  if jax.process_index() != 0:
    return
  table = Table(show_header=False, box=None, pad_edge=False)
  for name, value in result.items():
    if value is not None and not isinstance(value, list | dict):
      table.add_row(name, _text(name, value))
  console = Console(soft_wrap=True)
  console.print(table)
  console.print(f"workdir: {workdir}", highlight=False, markup=False)
  student = workdir / "student"
  if student.exists():
    console.print(f"student: {student}", highlight=False, markup=False)


def show_evaluation(result: Mapping[str, Any]) -> None:
  """Print an evaluation: the accuracy first, then the classes."""
  console = Console(soft_wrap=True)
  accuracy, names = result["accuracy"], result["class_names"]
  half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / result["images"])
  lines = [
    f"{result['network']} ({result['arch']}) on {result['dataset']},"
    f" {result['images']:,} images",
    f"accuracy                {accuracy:.2%} (95 % interval +- {half:.2%})",
    f"mean class accuracy     {result['mean_class_accuracy']:.2%}",
    f"calibration error       {result['calibration_error']:.2%}",
    f"negative log-likelihood {result['negative_log_likelihood']:.4f}",
  ]
  if result["dataset_shape"] != result["network_shape"]:
    there, here = (
      "x".join(map(str, result[name]))
      for name in ("dataset_shape", "network_shape")
    )
    lines.insert(1, f"images                  {there}, resized to {here}")
  if "agreement" in result:
    lines.append(f"agreement with teacher  {result['agreement']:.2%}")
  console.print("\n".join(lines), highlight=False, markup=False)
  shares = list(enumerate(result["per_class_accuracy"]))
  if len(shares) > MANY_CLASSES:
    seen = [(index, share) for index, share in shares if share is not None]
    shares = sorted(seen, key=lambda pair: pair[1])[:WORST_CLASSES]
    console.print(
      f"the {len(shares)} classes of the lowest accuracy, of {len(seen)} with"
      " images (--json FILE has all):",
      highlight=False,
      markup=False,
    )
  for index, share in shares:
    name = names[index] if names else str(index)
    shown = "no images" if share is None else f"{share:7.2%}"
    console.print(f"  {name:20s} {shown}", highlight=False, markup=False)


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
  """Print rows that have the same columns."""
  table = Table()
  for name in rows[0]:
    numeric = isinstance(rows[0][name], int | float)
    table.add_column(name, justify="right" if numeric else "left")
  for row in rows:
    table.add_row(*(_text(name, value) for name, value in row.items()))
  Console().print(table)


def show_rows(rows: Iterable[Sequence[str]]) -> None:
  """Print rows of text, a column below the other."""
  table = Table(show_header=False, box=None, pad_edge=False)
  for row in rows:
    table.add_row(*row)
  Console(soft_wrap=True, markup=False).print(table)


def show_list(what: str) -> None:
  """Print the names of a kind, for `dfkt list`."""
  if what == "methods":
    _show_methods()
    return
  if what == "archs":
    from dfkt_jax import models

    rows = [(name, "") for name in models.ARCHS]
    rows.append(("wrn-DEPTH-WIDEN", "any other wide residual network"))
  elif what == "presets":
    from dfkt_jax.teachers import PRESETS

    rows = [
      (preset.name, f"{', '.join(preset.archs)} ({preset.source})")
      for preset in PRESETS.values()
    ]
  elif what == "datasets":
    rows = list(_DATASETS.items())
  else:
    from dfkt_jax.commands import experiments

    rows = [
      (f"{path}:{name}", type(value).__name__)
      for path in sorted(Path("experiments").glob("[!_]*.py"))
      for name, value in experiments.find(str(path)).items()
    ] or [("none", "there is no folder experiments/ here with a module in it")]
  show_rows(rows)


def _show_methods() -> None:
  """Print methods and learners, each with the first line of its module."""
  console = Console(soft_wrap=True, markup=False, highlight=False)
  kinds = {
    "images from a teacher (dfkt synthesize, dfkt distill)": (
      methods.SYNTHESIZERS
    ),
    "images from a pool (dfkt distill --pool)": methods.SELECTORS,
    "images from a dataset (dfkt distill --transfer-set)": methods.STORED,
    "what a student learns (dfkt distill --learner)": methods.LEARNERS,
    "adaptation (dfkt adapt)": methods.ADAPTERS,
  }
  for kind, known in kinds.items():
    console.print(f"{kind}:")
    for name, entry in known.items():
      console.print(f"  {name:16}{entry.title()}")
      if entry.paper:
        console.print(f"  {'':16}{entry.paper}")


def _text(name: str, value: Any) -> str:
  if value is None:
    return "-"
  if isinstance(value, float):
    if any(word in name for word in _SHARES):
      return f"{value:.2%}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
  if isinstance(value, int) and name != "seed":
    return f"{value:,}"
  return str(value)
