"""Figures of the report: curves from rows of metrics, drawn as inline SVG.

Colors in the SVG are CSS variables of the page, so that a figure follows its
dark mode; matplotlib draws with placeholder colors that are replaced at the
end.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import html
import io
import re
from typing import Any, NamedTuple
import warnings
import zlib

import numpy as np

PALETTE = 8  # the page defines --c0 ... --c7
_INK, _MUTED, _RULE, _BAD = "#010203", "#010204", "#010205", "#010206"
_COLORS = [f"#0a0b{index:02x}" for index in range(16, 16 + PALETTE)]
_VARIABLES = {
  _INK: "var(--ink)",
  _MUTED: "var(--muted)",
  _RULE: "var(--rule)",
  _BAD: "var(--bad)",
  **{color: f"var(--c{index})" for index, color in enumerate(_COLORS)},
}
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_STYLE: dict[Any, Any] = {
  "text.parse_math": False,
  "svg.fonttype": "none",
  "svg.hashsalt": "dfkt",
  "font.size": 7.5,
  "text.color": _INK,
  "axes.edgecolor": _RULE,
  "axes.facecolor": "none",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.spines.left": False,
  "axes.axisbelow": True,
  "axes.grid": True,
  "axes.grid.axis": "y",
  "grid.color": _RULE,
  "grid.linewidth": 0.6,
  "xtick.color": _RULE,
  "ytick.color": _RULE,
  "xtick.labelcolor": _MUTED,
  "ytick.labelcolor": _MUTED,
  "ytick.major.size": 0,
  "xtick.major.size": 2.5,
  "xtick.major.width": 0.6,
}
_POINTS = 300  # more points than the width of a figure can show


def _styled(draw: Callable[..., str]) -> Callable[..., str]:
  """Draw in the report's style; matplotlib is imported when it is needed."""

  @functools.wraps(draw)
  def styled(*args, **kwargs) -> str:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
      # The browser has a font for class names in any script.
      warnings.filterwarnings("ignore", "Glyph")
      return draw(*args, **kwargs)

  return styled


class Curve(NamedTuple):
  """A metric over the run: i64[n] increasing steps and f64[n] values."""

  steps: np.ndarray
  values: np.ndarray


class Line(NamedTuple):
  """A curve to draw; `spread` is its standard deviation over seeds."""

  label: str
  curve: Curve
  color: int = 0
  spread: np.ndarray | None = None


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
  """Return the curve of each numeric metric; a repeated step counts once."""
  points: dict[str, dict[int, float]] = {}
  for row in rows:
    for key, value in row.items():
      number = isinstance(value, int | float) and not isinstance(value, bool)
      if number and key not in ("step", "wall"):
        points.setdefault(key, {})[row["step"]] = float(value)
  return {key: _curve(values) for key, values in points.items()}


def _curve(points: Mapping[int, float]) -> Curve:
  steps = sorted(points)
  return Curve(np.array(steps), np.array([points[step] for step in steps]))


def mean_curve(several: Sequence[Curve]) -> tuple[Curve, np.ndarray | None]:
  """Return the mean over runs and its standard deviation.

  They cover the steps that all runs reached. Runs that logged at other steps
  are interpolated; one run has no deviation.
  """
  if len(several) == 1:
    return several[0], None
  first = max(curve.steps[0] for curve in several)
  last = min(curve.steps[-1] for curve in several)
  steps = np.unique(np.concatenate([curve.steps for curve in several]))
  steps = steps[(steps >= first) & (steps <= last)]
  # A diverged run cannot be averaged with the others; inf - inf would warn.
  finite = [np.where(np.isfinite(c.values), c.values, np.nan) for c in several]
  stack = np.stack(
    [np.interp(steps, c.steps, values) for c, values in zip(several, finite)]
  )
  return Curve(steps, stack.mean(0)), stack.std(0, ddof=1)


def robust_range(values: np.ndarray) -> tuple[float, float]:
  """Return y limits such that a few spikes do not flatten the curve."""
  finite = values[np.isfinite(values)]
  if not finite.size:
    return 0.0, 1.0
  low, high = np.quantile(finite, (0.02, 0.98))
  room = 0.5 * (high - low)
  # Extremes that are only slightly beyond the bulk are shown.
  low = finite.min() if finite.min() >= low - room else low
  high = finite.max() if finite.max() <= high + room else high
  margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
  return float(low - margin), float(high + margin)


@_styled
def small_svg(key: str, lines: Sequence[Line]) -> str:
  """Draw one metric, small, as running medians.

  A single line also has its raw values, faint.
  """
  figure, axes = _figure(3.1, 1.5)
  for line in lines:
    if len(lines) == 1 and line.spread is None:
      thin = _thin(line.curve)
      axes.plot(*thin, color=_color(line), linewidth=0.6, alpha=0.3)
    _draw(axes, line, smooth=True)
  axes.set_ylim(*robust_range(_all_values(lines)))
  _mark_non_finite(axes, lines)
  return _svg(figure, f"{key}: {_words(lines)}")


@_styled
def accuracy_svg(lines: Sequence[Line], teacher: float | None) -> str:
  """Draw shares over the run, wide, and the teacher's as a dashed line."""
  from matplotlib.ticker import PercentFormatter

  figure, axes = _figure(8.6, 2.7)
  for line in lines:
    _draw(axes, line, smooth=False)
    if len(line.curve.steps):
      end = (line.curve.steps[-1], line.curve.values[-1])
      axes.plot(*end, "o", color=_color(line), markersize=3.5, clip_on=False)
  values = _all_values(lines)
  words = _words(lines)
  if teacher is not None:
    axes.axhline(teacher, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    values = np.append(values, teacher)
    words += f"; teacher {teacher:.4g}"
  low, high = robust_range(values)
  axes.set_ylim(max(low, -0.02), min(high, 1.02))
  axes.set_xlabel("step", color=_MUTED)
  axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
  _mark_non_finite(axes, lines)
  return _svg(figure, f"accuracy: {words}")


@_styled
def per_class_svg(values: Sequence[float], names: Sequence[str]) -> str:
  """Draw the accuracy of each class as bars, or of many as one sorted area."""
  from matplotlib.ticker import PercentFormatter

  heights = np.nan_to_num(np.asarray(values, float))
  figure, axes = _figure(8.6, 1.9)
  if len(heights) <= 40:
    axes.bar(range(len(heights)), heights, width=0.72, color=_COLORS[0])
    axes.set_xticks(range(len(heights)), names, rotation=_tilt(names))
    axes.tick_params(axis="x", length=0)
  else:
    ranked = np.sort(heights)[::-1]
    places = np.arange(len(ranked))
    axes.fill_between(places, ranked, color=_COLORS[0], linewidth=0)
    axes.set_xlabel("classes, best first", color=_MUTED)
  axes.set_ylim(0, max(1.0, heights.max(initial=0)))
  axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
  worst = int(heights.argmin())
  return _svg(
    figure,
    f"accuracy of {len(heights)} classes, from {heights[worst]:.4g} "
    f"({names[worst]}) to {heights.max():.4g}",
  )


def _figure(width: float, height: float):
  from matplotlib.figure import Figure
  from matplotlib.ticker import EngFormatter, MaxNLocator

  figure = Figure(figsize=(width, height), layout="constrained")
  figure.patch.set_visible(False)
  axes = figure.subplots()
  ticks = 4 if width < 5 else 8
  axes.margins(x=0.015)
  axes.xaxis.set_major_locator(
    MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=True)
  )
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))
  axes.yaxis.set_major_locator(MaxNLocator(4))
  axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
  return figure, axes


def _draw(axes, line: Line, smooth: bool) -> None:
  color = _color(line)
  style = _DASHES[line.color // PALETTE % len(_DASHES)]
  calm = _calm if smooth else lambda values: values
  steps, values = _thin(line.curve)
  values = calm(values)
  # A single point makes no line and needs a marker.
  marker = "o" if len(steps) == 1 else None
  axes.plot(
    steps, values, color=color, linewidth=1.3, linestyle=style, marker=marker
  )
  if line.spread is not None:
    spread = calm(_thin(Curve(line.curve.steps, line.spread)).values)
    band = (values - spread, values + spread)
    axes.fill_between(steps, *band, color=color, alpha=0.18, linewidth=0)


def _mark_non_finite(axes, lines: Sequence[Line]) -> None:
  """Draw a red mark at the foot where a value was nan or infinite."""
  for line in lines:
    steps = line.curve.steps[~np.isfinite(line.curve.values)][:_POINTS]
    floor = np.zeros(len(steps))
    place = axes.get_xaxis_transform()
    axes.plot(steps, floor, "|", color=_BAD, markersize=7, transform=place)


def _color(line: Line) -> str:
  return _COLORS[line.color % PALETTE]


def _all_values(lines: Sequence[Line]) -> np.ndarray:
  parts = [line.curve.values for line in lines]
  parts += [
    line.curve.values + sign * line.spread
    for line in lines
    if line.spread is not None
    for sign in (-1, 1)
  ]
  return np.concatenate(parts) if parts else np.zeros(0)


def _thin(curve: Curve) -> Curve:
  """Average blocks of points; non-finite values become gaps."""
  values = np.where(np.isfinite(curve.values), curve.values, np.nan)
  block = -(-len(values) // _POINTS)
  if block <= 1:
    return Curve(curve.steps, values)
  starts = range(0, len(values), block)
  means = [
    _of_finite(np.mean, values[start : start + block]) for start in starts
  ]
  middles = [curve.steps[start : start + block].mean() for start in starts]
  return Curve(np.array(middles), np.array(means))


def _calm(values: np.ndarray, half: int = 7) -> np.ndarray:
  """Return the running median of many values, which one spike cannot move."""
  if len(values) <= 60:
    return values
  windows = (
    values[max(0, index - half) : index + half + 1]
    for index in range(len(values))
  )
  return np.array([_of_finite(np.median, window) for window in windows])


def _of_finite(reduce: Callable[..., Any], values: np.ndarray) -> float:
  """Reduce the finite values; numpy's nan functions warn if all are nan."""
  finite = values[~np.isnan(values)]
  return float(reduce(finite)) if finite.size else float("nan")


def _tilt(names: Sequence[str]) -> int:
  return 90 if sum(map(len, names)) > 130 else 0


def _words(lines: Sequence[Line]) -> str:
  """Describe a figure for readers who cannot see it."""
  parts = [
    f"{line.label} from {line.curve.values[0]:.4g} at step "
    f"{line.curve.steps[0]} to {line.curve.values[-1]:.4g} at step "
    f"{line.curve.steps[-1]}"
    for line in lines
    if len(line.curve.steps)
  ]
  return "; ".join(parts)


def _svg(figure, label: str) -> str:
  """Return the figure as an <svg> element that can share a page with others."""
  buffer = io.StringIO()
  figure.savefig(buffer, format="svg", transparent=True)
  text = buffer.getvalue()
  box = re.search(r'viewBox="[^"]*"', text)
  # Before it are the head and a style rule that would apply to the page.
  body = text[text.index("</style>") :].split("</defs>", 1)[1]
  # Figures use the page's font.
  body = re.sub(r"font-family: [^;]*; ", "", body).replace("xlink:", "")
  body = _own_ids(body)
  colors = "|".join(_VARIABLES)
  body = re.sub(colors, lambda match: _VARIABLES[match[0]], body)
  head = f'<svg role="img" aria-label="{html.escape(label)}"'
  return f"{head} {box[0] if box else ''}>{body}"


def _own_ids(body: str) -> str:
  """Make ids unique in the page, and remove those that are not used.

  Equal figures share their ids, which then have the same meaning.
  """
  used = set(re.findall(r"#(\w+)", body))
  prefix = f"f{zlib.crc32(body.encode()):08x}-"
  keep = lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else ""
  body = re.sub(r' id="([^"]*)"', keep, body)
  return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}", body)
