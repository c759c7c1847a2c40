"""Elements of the report: readable numbers, tables, and the page itself.

Every function escapes its arguments; only an argument named `body` is HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
import datetime
import html
import json
import math
import re
from typing import Any, NamedTuple

LABELS = {
  "accuracy_last": "accuracy, last iterate",
  "accuracy_best": "accuracy, best over the run",
  "accuracy_mean": "accuracy, mean over the run",
  "agreement": "agreement with the teacher",
  "wall_seconds": "wall time",
  "images_per_second": "images/s",
}

CSS = """
:root { color-scheme: light dark;
  --paper: #fcfcfa; --card: #ffffff; --ink: #1c2126; --muted: #66707a;
  --rule: #dfe2e4; --tint: #eef3fb; --bad: #c2283f; --warm: #fdf3dd;
  --c0: #2563c9; --c1: #d1620b; --c2: #138a64; --c3: #a83a8f;
  --c4: #8a6d00; --c5: #0e8ba8; --c6: #c2344a; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --card: #1b1f24; --ink: #e4e7ea; --muted: #97a1ab;
  --rule: #333a41; --tint: #1f2c40; --bad: #ff7d8c; --warm: #3a3018;
  --c0: #7aa8ff; --c1: #ff9f57; --c2: #55c99b; --c3: #e08bd0;
  --c4: #d9be54; --c5: #5fc6de; --c6: #ff8593; --c7: #b0b0b0; } }
@media print { :root { color-scheme: light;
  --paper: #fff; --card: #fff; --ink: #000; --muted: #555; --rule: #ccc;
  --tint: #eee; --bad: #c2283f; --warm: #f6f0e0;
  --c0: #2563c9; --c1: #d1620b; --c2: #138a64; --c3: #a83a8f;
  --c4: #8a6d00; --c5: #0e8ba8; --c6: #c2344a; --c7: #6b6b6b; }
  details::details-content { content-visibility: visible; }
  h2, h3 { break-after: avoid; }
  figure, tr, .stat { break-inside: avoid; }
  * { print-color-adjust: exact; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px;
  letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 12px; }
h3 { font-size: 13px; margin: 22px 0 6px; color: var(--muted);
  font-weight: 600; }
p { margin: 8px 0; max-width: 76ch; }
.meta, .rule, figcaption, footer, caption { color: var(--muted);
  font-size: 13px; }
.meta { max-width: none; overflow-wrap: anywhere; }
.badge { display: inline-block; padding: 0 9px; border-radius: 10px;
  font-size: 12px; font-weight: 600; background: var(--tint);
  color: var(--c0); margin-right: 6px; }
.badge.bad { background: var(--warm); color: var(--bad); }
.headline { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0 10px; }
.stat { flex: 1 1 130px; max-width: 250px; padding: 12px 14px;
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.stat b { display: block; font-size: 22px; line-height: 1.5; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.stat span { color: var(--muted); font-size: 13px; line-height: 1.35;
  display: block; }
.stat.main { flex-grow: 1.7; max-width: none;
  background: var(--tint); border-color: var(--c0); }
.stat.main b { font-size: 32px; line-height: 1.2; color: var(--c0); }
.stat.main span { color: var(--ink); font-weight: 600; }
.note { background: var(--warm); border-radius: 8px; padding: 10px 16px;
  margin: 14px 0; list-style: none; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; min-width: 50%; }
table.wide { width: 100%; }
caption { text-align: left; caption-side: bottom; padding-top: 6px; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: break-word; }
th:last-child, td:last-child { padding-right: 4px; }
td:first-child { min-width: 10ch; }
thead th { color: var(--muted); font-weight: 600; font-size: 13px;
  vertical-align: bottom; border-bottom-color: var(--muted); }
tbody th { font-weight: 400; }
.num { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
thead .num { white-space: normal; }
.none { color: var(--muted); }
.bar { display: inline-block; width: 64px; height: 8px; margin-left: 8px;
  border-radius: 2px; background: linear-gradient(to right, var(--c0)
  var(--share), var(--rule) var(--share)); }
.facts { columns: 2; column-gap: 40px; }
.facts table { width: 100%; border-collapse: separate; border-spacing: 0;
  table-layout: fixed; }
.facts tr { break-inside: avoid; }
.facts th { width: 42%; }
.facts.code td { font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: 12.5px; }
.confusion td { min-width: 0; padding: 3px 6px; text-align: center; border: 0;
  background: color-mix(in srgb, var(--c0) var(--share), transparent); }
.confusion th { padding: 3px 8px; border: 0; }
figure { margin: 0; }
figcaption { display: flex; justify-content: space-between; gap: 12px;
  margin-bottom: 2px; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
figcaption .bad { color: var(--bad); }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
.multiples { display: grid; gap: 18px 28px;
  grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); }
.gallery { display: grid; gap: 22px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.gallery img { max-width: 100%; height: auto; display: block;
  border-radius: 4px; image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0;
  margin: 4px 0 12px; list-style: none; font-size: 13px; }
.legend li::before { content: ""; display: inline-block; width: 18px;
  margin-right: 7px; vertical-align: 4px;
  border-top: 2px var(--dash, solid) var(--color); }
details { border-top: 1px solid var(--rule); padding: 10px 0; }
details h2 { font-size: 16px; margin-top: 24px; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
summary span { color: var(--muted); font-weight: 400; }
footer { margin-top: 56px; border-top: 1px solid var(--rule);
  padding-top: 10px; }
@media (max-width: 700px), print { .facts { columns: 1; } }
"""


class Mean(NamedTuple):
  """A mean over runs and its standard deviation; None with a single run."""

  mean: float
  deviation: float | None


def escape(text: Any) -> str:
  """Escape text for HTML."""
  return html.escape(str(text))


def is_number(value: Any) -> bool:
  """Return whether a value of a result is a number; a bool is not."""
  return isinstance(value, int | float | Mean) and not isinstance(value, bool)


def label(key: str) -> str:
  """Return the heading of a result's key."""
  return LABELS.get(key, key.replace("_", " "))


def show(key: str, value: Any) -> str:
  """Format a result in the unit that its key implies."""
  if value is None:
    return "–"
  if isinstance(value, Mean):
    return _show_mean(key, value)
  if not is_number(value):
    return raw(value)
  if not math.isfinite(value):
    return str(value)
  if is_share(key):
    return f"{100 * value:.2f} %"
  if key.endswith("seconds"):
    return _duration(value)
  if key == "seed":
    return str(value)
  if isinstance(value, int) or abs(value) >= 1000:
    return f"{value:,.0f}"
  return f"{value:.4g}"


def raw(value: Any) -> str:
  """Format a setting as the user wrote it."""
  return value if isinstance(value, str) else json.dumps(value)


def is_share(key: str) -> bool:
  """Return whether a key names a share, which is shown in percent."""
  return bool(re.search(r"accuracy|agreement|top1", key))


def table(
  columns: Mapping[str, str],
  rows: Sequence[Mapping[str, Any]],
  caption: str = "",
  bar: str | None = None,
) -> str:
  """Make a table.

  Args:
    columns: maps keys of the rows to headings.
    bar: key of a share that is also drawn as a bar beside its number.
  """
  numeric = {
    key for key in columns if any(is_number(row.get(key)) for row in rows)
  }
  heads = [
    f'<th scope="col"{_kind(key in numeric)}>{escape(text)}</th>'
    for key, text in columns.items()
  ]
  lines = [
    [_cell(key, row.get(key), key in numeric, key == bar) for key in columns]
    for row in rows
  ]
  note = f"<caption>{escape(caption)}</caption>" if caption else ""
  return (
    f'<div class="scroll"><table class="wide">{note}'
    f"<thead><tr>{''.join(heads)}</tr></thead>"
    f"<tbody>{_rows(lines)}</tbody></table></div>"
  )


def facts(pairs: Iterable[tuple[str, str]], code: bool = False) -> str:
  """List names and values, in two columns where the window is wide enough."""
  lines = [
    [f'<th scope="row">{escape(name)}</th>', f"<td>{escape(value)}</td>"]
    for name, value in pairs
  ]
  kind = "facts code" if code else "facts"
  body = f"<table><tbody>{_rows(lines)}</tbody></table>"
  return f'<div class="{kind}">{body}</div>' if lines else ""


def confusion(matrix: Sequence[Sequence[float]], names: Sequence[str]) -> str:
  """Make a square of shaded counts, true classes by predicted ones."""
  heads = [f'<th scope="col">{escape(name)}</th>' for name in names]
  lines = [["<th></th>", *heads]]
  for name, row in zip(names, matrix):
    total = sum(row) or 1
    cells = [
      f'<td style="--share:{60 * count / total:.0f}%">{escape(count)}</td>'
      for count in row
    ]
    lines.append([f'<th scope="row">{escape(name)}</th>', *cells])
  note = "<caption>rows: true class; columns: predicted class</caption>"
  return (
    f'<div class="scroll"><table class="confusion">{note}'
    f"<tbody>{_rows(lines)}</tbody></table></div>"
  )


def headline(stats: Iterable[tuple[str, str]], remark: str) -> str:
  """Show (name, value) pairs as big numbers, the most important one first."""
  boxes = "".join(
    f'<div class="stat{"" if index else " main"}"><b>{escape(value)}</b>'
    f"<span>{escape(name)}</span></div>"
    for index, (name, value) in enumerate(stats)
  )
  return (
    f'<div class="headline">{boxes}</div><p class="rule">{escape(remark)}</p>'
  )


def badge(text: str, bad: bool = False) -> str:
  """Make a small label, for the status of a run."""
  return f'<span class="badge{" bad" if bad else ""}">{escape(text)}</span>'


def legend(entries: Iterable[tuple[str, str, bool]]) -> str:
  """Make the legend of a figure from (text, CSS color, dashed) of each line."""
  items = [
    f'<li style="--color:{color};--dash:{"dashed" if dashed else "solid"}">'
    f"{escape(text)}</li>"
    for text, color, dashed in entries
  ]
  return f'<ul class="legend">{"".join(items)}</ul>'


def notes(texts: Iterable[Any]) -> str:
  """Make a box of remarks; empty without any."""
  items = "".join(f"<li>{escape(text)}</li>" for text in texts)
  return f'<ul class="note">{items}</ul>' if items else ""


def section(title: str, body: str) -> str:
  """Make a titled section; empty where its body is empty."""
  return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def page(title: str, body: str) -> str:
  """Make the whole document; its policy forbids loading anything external."""
  now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" content="default-src '
    "'none'; style-src 'unsafe-inline'; img-src data:\">"
    f"<title>{escape(title)}</title><style>{CSS}</style></head>"
    f"<body><main>{body}<footer>Written by dfkt report, {now}.</footer>"
    "</main></body></html>\n"
  )


def _cell(key: str, value: Any, numeric: bool, bar: bool) -> str:
  text = escape(show(key, value))
  if value is None:
    text = f'<span class="none">{text}</span>'
  elif bar and is_number(value) and 0 <= value <= 1:
    text += f'<span class="bar" style="--share:{100 * value:.1f}%"></span>'
  return f"<td{_kind(numeric)}>{text}</td>"


def _rows(lines: Iterable[Iterable[str]]) -> str:
  return "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)


def _kind(numeric: bool) -> str:
  return ' class="num"' if numeric else ""


def _show_mean(key: str, value: Mean) -> str:
  if not value.deviation:
    return show(key, value.mean)
  if is_share(key):
    return f"{100 * value.mean:.2f} ± {100 * value.deviation:.2f} %"
  return f"{show(key, value.mean)} ± {value.deviation:.2g}"


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
