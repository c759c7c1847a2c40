"""The visual parts of the report: curves, classes, images."""

import base64
from collections.abc import Iterable, Sequence
import io
from pathlib import Path
import re

import numpy as np

from dfkt_jax.report import html as page
from dfkt_jax.report import plots
from dfkt_jax.report.html import is_number, show
from dfkt_jax.report.plots import Line
from dfkt_jax.report.runs import Group, Run

# Keys of a result that these parts show.
SHOWN = ("per_class_accuracy", "class_names", "confusion")
_IMAGE_BYTES = 1_000_000  # a larger file is shown reduced,
_IMAGE_SIDE = 1200  # to this many pixels
_CLASSES = 25  # the most classes whose confusion matrix is readable
_PAIRS = 15  # confusions listed where there are more classes
_ACCURACY = re.compile(r"(^|[/_])(accuracy|top1|acc|agreement)$")
_READING = (
  "Over steps; long curves as running medians, with the logged values faint "
  "behind them where there is one run. The axes leave rare spikes out; a red "
  "mark at the foot is a step whose value was not finite."
)


def accuracy_keys(keys: Iterable[str]) -> list[str]:
  """Return the keys of the evaluation's scores, accuracy before agreement."""
  found = [key for key in keys if _ACCURACY.search(key)]
  chosen = [key for key in found if key.startswith("eval/")] or found
  return sorted(chosen, key=lambda key: (key.endswith("agreement"), key))


def accuracy(groups: Sequence[Group]) -> str:
  """Draw all scores of one run, or the accuracy of each of several groups."""
  runs = [run for each in groups for run in each.runs]
  keys = accuracy_keys(_keys(runs))
  if len(runs) == 1:
    lines = [
      line._replace(label=key, color=index)
      for index, key in enumerate(keys)
      for line in _lines(key, groups)
    ]
  else:
    lines = [line for key in keys[:1] for line in _lines(key, groups)]
  if not lines:
    return ""
  known = {run.teacher_accuracy for run in runs} - {None}
  teacher = known.pop() if len(known) == 1 else None
  entries = [(line.label, _color(line.color), False) for line in lines]
  if teacher is not None:
    text = f"teacher, {show('accuracy', teacher)}"
    entries.append((text, "var(--ink)", True))
  figure = plots.accuracy_svg(lines, teacher)
  return f"{page.legend(entries)}<figure>{figure}</figure>{_spread(lines)}"


def multiples(groups: Sequence[Group]) -> str:
  """Draw a small figure of each metric, grouped by namespace."""
  keys = _keys([run for each in groups for run in each.runs])
  scores = accuracy_keys(keys)
  spaces: dict[str, list[str]] = {}
  for key in keys:
    if key not in scores:
      spaces.setdefault(_space(key), []).append(key)
  # z/ holds clocks and counters: last.
  ordered = sorted(spaces, key=lambda space: (space == "z", space))
  parts = [
    f"<h3>{page.escape(space or 'metrics')}</h3><div class='multiples'>"
    + "".join(_multiple(key, groups) for key in spaces[space])
    + "</div>"
    for space in ordered
  ]
  if not parts:
    return ""
  entries = [(g.label, _color(index), False) for index, g in enumerate(groups)]
  legend = page.legend(entries) if len(groups) > 1 else ""
  return f'{legend}{"".join(parts)}<p class="rule">{_READING}</p>'


def per_class(run: Run) -> str:
  """Draw the accuracy of each class, and name the lowest."""
  values = run.listed("per_class_accuracy")
  names = _names(run, len(values))
  # A class without images has no accuracy.
  known = [(v, name) for v, name in zip(values, names) if is_number(v)]
  if not known:
    return ""
  heights = [value if is_number(value) else 0.0 for value in values]
  ranked = sorted(known, key=lambda pair: pair[0])[:5]
  worst = ", ".join(f"{name} ({show('accuracy', v)})" for v, name in ranked)
  return (
    f"<figure>{plots.per_class_svg(heights, names)}</figure>"
    f'<p class="rule">Lowest: {page.escape(worst)}</p>'
  )


def confusion(run: Run) -> str:
  """Show the confusion matrix, or with many classes the worst pairs."""
  matrix = run.listed("confusion")
  size = len(matrix)
  square = all(
    isinstance(row, list) and len(row) == size and all(map(is_number, row))
    for row in matrix
  )
  if not size or not square:
    return ""
  names = _names(run, size)
  if size <= _CLASSES:
    return page.confusion(matrix, names)
  pairs = [
    {"count": count, "truth": names[truth], "prediction": names[prediction]}
    for truth, row in enumerate(matrix)
    for prediction, count in enumerate(row)
    if truth != prediction and count
  ]
  worst = sorted(pairs, key=lambda pair: -pair["count"])[:_PAIRS]
  columns = {
    "truth": "true class",
    "prediction": "prediction",
    "count": "images",
  }
  return page.table(columns, worst, f"The {len(worst)} most frequent.")


def gallery(run: Run, limit: int) -> str:
  """Embed the latest image grids."""
  paths = sorted((run.path / "images").glob("*.png"), key=_order, reverse=True)
  shown = "".join(map(_image, paths[:limit]))
  more = len(paths) - limit
  folder = page.escape(run.path / "images")
  note = f'<p class="rule">{more} more in {folder}.</p>' if more > 0 else ""
  return f'<div class="gallery">{shown}</div>{note}' if shown else ""


def _keys(runs: Iterable[Run]) -> list[str]:
  return list(dict.fromkeys(key for run in runs for key in run.curves))


def _lines(key: str, groups: Sequence[Group]) -> list[Line]:
  """Return a line for each group that has the metric: its mean over runs."""
  lines = []
  for index, each in enumerate(groups):
    found = [run.curves[key] for run in each.runs if key in run.curves]
    if found:
      curve, spread = plots.mean_curve(found)
      lines.append(Line(each.label, curve, index, spread))
  return lines


def _multiple(key: str, groups: Sequence[Group]) -> str:
  lines = _lines(key, groups)
  name = key.removeprefix(f"{_space(key)}/")
  values = np.concatenate([line.curve.values for line in lines])
  lost = int((~np.isfinite(values)).sum())
  bad = f'<span class="bad">{lost} not finite</span>' if lost else ""
  last = f"{values[-1]:.4g}" if len(lines) == 1 and len(values) else ""
  return (
    f"<figure><figcaption><b>{page.escape(name)}</b>{bad}<span>{last}</span>"
    f"</figcaption>{plots.small_svg(key, lines)}</figure>"
  )


def _space(key: str) -> str:
  """Return the namespace of a metric: distill of distill/kl."""
  return key.split("/")[0] if "/" in key else ""


def _spread(lines: Sequence[Line]) -> str:
  if all(line.spread is None for line in lines):
    return ""
  return '<p class="rule">Bands are one standard deviation over seeds.</p>'


def _color(index: int) -> str:
  return f"var(--c{index % plots.PALETTE})"


def _names(run: Run, count: int) -> list[str]:
  names = [str(name) for name in run.listed("class_names")]
  return names if len(names) == count else [str(i) for i in range(count)]


def _order(path: Path) -> tuple[int, str]:
  step = _step(path)
  return (-1 if step is None else step, path.name)


def _step(path: Path) -> int | None:
  """Return the last number in a name: 120 of pool-000120.png."""
  numbers = re.findall(r"\d+", path.stem)
  return int(numbers[-1]) if numbers else None


def _image(path: Path) -> str:
  from PIL import Image

  step = _step(path)
  name = re.sub(r"[-_ ]*\d+$", "", path.stem)
  words = [name, "" if step is None else f"step {step:,}"]
  title = ", ".join(word for word in words if word)
  try:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      width, height = image.size
      if len(data) > _IMAGE_BYTES:
        data, title = _reduced(image), f"{title}, shown reduced"
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    return page.notes([f"{path} is not a complete PNG and was left out."])
  caption = page.escape(title)
  source = base64.b64encode(data).decode()
  kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
  return (
    f"<figure><figcaption><b>{caption}</b></figcaption>"
    f'<img width="{width}" height="{height}" alt="Grid of images: {caption}" '
    f'src="data:image/{kind};base64,{source}"></figure>'
  )


def _reduced(image) -> bytes:
  small = image.convert("RGB")
  small.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
  buffer = io.BytesIO()
  small.save(buffer, format="JPEG", quality=88)
  return buffer.getvalue()
