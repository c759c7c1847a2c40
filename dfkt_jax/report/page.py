"""`dfkt report`: one self-contained HTML page about workdirs."""

from collections.abc import Mapping, Sequence
import datetime
import os
from pathlib import Path

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.report import figures
from dfkt_jax.report import html as page
from dfkt_jax.report.html import label, show
from dfkt_jax.report.runs import Group, Run, differing, flatten, group, load

_IMAGES = 6  # grids shown of a single run
_IMAGES_EACH = 2  # grids shown of each of several runs
_COLUMNS = 6  # differing settings shown in a comparison
_SEEDS = 3  # the fewest seeds that support a claim
# The scores, with headings short enough for a wide table.
_HEADS = {
  "accuracy_last": "last iterate",
  "accuracy_best": "best over the run",
  "accuracy_mean": "mean over the run",
  "agreement": "agreement",
  "teacher_accuracy": "teacher",
}
_RULE = (
  "The headline is the last iterate. Best and mean over the run are beside it "
  "for reference: choosing the best iterate takes test labels."
)
_MEANING = "Last iterate, best and mean are accuracies on the evaluation set."


def report(
  workdirs: Sequence[str | os.PathLike[str]],
  out: str | os.PathLike[str] | None = None,
) -> Path:
  """Write a page about one run, or one that compares several.

  Args:
    workdirs: folders of runs, finished or not.
    out: the page to write; by default `report.html` in the workdir, or in the
      folder that all workdirs have in common.

  Returns:
    The path of the page.

  Raises:
    UsageError: no workdir is given, or one is not a workdir, or the page cannot
      be written.
  """
  if not workdirs:
    raise UsageError(
      "No workdir was given: name the folder of one or more runs."
    )
  runs = [load(Path(workdir)) for workdir in workdirs]
  home = Path(os.path.commonpath([run.path.resolve() for run in runs]))
  default = runs[0].path if len(runs) == 1 else home
  path = Path(out) if out is not None else default / "report.html"
  text = _one(runs[0]) if len(runs) == 1 else _several(runs, home)
  files.write_atomic(path, text)
  return path


def _one(run: Run) -> str:
  alone = [Group("", [run])]
  body = (
    _header(run)
    + _headline(run)
    + page.notes([*run.problems, *run.listed("notes")])
    + page.section("Comparison", _baselines(run))
    + page.section("Result", _results(run))
    + page.section("Accuracy over the run", figures.accuracy(alone))
    + page.section("Losses and other metrics", figures.multiples(alone))
    + _details(run, _IMAGES)
  )
  return page.page(f"{run.method} · {run.path.resolve().name}", body)


def _several(runs: Sequence[Run], home: Path) -> str:
  groups = group(runs)
  methods = ", ".join(dict.fromkeys(run.method for run in runs))
  day = _moment(max(run.written for run in runs))
  title = f"{len(runs)} runs · {methods}"
  names = [os.path.relpath(run.path.resolve(), home) for run in runs]
  body = (
    f"<header><h1>{page.escape(title)}</h1>"
    f'<p class="meta">{page.escape(home)} · {day}</p></header>'
    + _group_headline(groups)
    + page.section("Runs", _runs_table(runs, names))
    + page.section("Mean over seeds", _seeds_table(groups))
    + page.section("Accuracy over the run", figures.accuracy(groups))
    + page.section("Losses and other metrics", figures.multiples(groups))
    + page.section("Each run", "".join(map(_folded, runs, names)))
  )
  return page.page(title, body)


def _header(run: Run) -> str:
  result = run.result or {}
  parts = [str(run.path), _moment(run.written)]
  parts += [page.raw(result["device"])] if result.get("device") else []
  parts += [f"seed {page.raw(run.seed)}"] if run.seed is not None else []
  status = _status(run)
  badge = page.badge(status, bad=status != "finished")
  command = result.get("command") or run.config.get("command")
  title = f"{command} · {run.method}" if command else run.method
  return (
    f"<header><h1>{page.escape(title)}</h1>"
    f'<p class="meta">{badge} {page.escape(" · ".join(parts))}</p>'
    "</header>"
  )


def _status(run: Run) -> str:
  if run.result is None:
    return f"unfinished, last step {run.last_step:,}"
  if run.result.get("oracle") is True:
    return "finished, selected on test labels"
  return "finished"


def _moment(seconds: float) -> str:
  return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _headline(run: Run) -> str:
  if run.result is None:
    return _headline_so_far(run)
  if run.score("accuracy_last") is None:
    return "<p>Accuracy is unknown: the result has none.</p>"
  scores = {key: run.score(key) for key in _HEADS}
  scores["teacher_accuracy"] = run.teacher_accuracy
  return page.headline(
    [(label(k), show(k, v)) for k, v in scores.items() if v is not None], _RULE
  )


def _headline_so_far(run: Run) -> str:
  total = run.total_steps
  of = "" if total is None else f" of {total:,}"
  stats = [("steps done", f"{run.last_step:,}{of}")]
  for key in figures.accuracy_keys(run.curves)[:2]:
    curve = run.curves[key]
    name = f"{key} at step {curve.steps[-1]:,}, not final"
    stats.append((name, show(key, float(curve.values[-1]))))
  return page.headline(stats, "The run has no result yet.")


def _group_headline(groups: Sequence[Group]) -> str:
  """Show the mean scores, where all runs are of one experiment."""
  if len(groups) > 1 or groups[0].mean("accuracy_last") is None:
    return ""
  means = {key: groups[0].mean(key) for key in _HEADS}
  count = _count(groups[0])
  seeds = "1 seed" if count == 1 else f"{count} seeds"
  return page.headline(
    [(label(k), show(k, v)) for k, v in means.items() if v is not None],
    f"Mean ± standard deviation over {seeds}. {_RULE}",
  )


def _baselines(run: Run) -> str:
  """Show the rows with which the run compared itself."""
  rows = [row for row in run.listed("table") if isinstance(row, Mapping)]
  columns = {key: label(key) for row in rows for key in row}
  bar = next((key for key in columns if page.is_share(key)), None)
  return page.table(columns, rows, bar=bar) if rows else ""


def _runs_table(runs: Sequence[Run], names: Sequence[str]) -> str:
  """Make a row for each run, with the settings that differ as columns.

  Their keys begin with a dot, as a setting may have the name of a score.
  """
  keys = differing(runs)
  rows = [
    {f".{key}": page.raw(v) for key, v in run.settings.items() if key in keys}
    | {"name": name, "seed": run.seed, "status": _status(run)}
    | {key: run.score(key) for key in (*_HEADS, "wall_seconds")}
    | {"teacher_accuracy": run.teacher_accuracy}
    for run, name in zip(runs, names)
  ]
  columns = {"name": "run"} | {f".{key}": key for key in keys[:_COLUMNS]}
  columns |= {"seed": "seed"} | _HEADS | {"wall_seconds": "wall time"}
  if any(_status(run) != "finished" for run in runs):
    columns["status"] = "status"
  more = len(keys) - _COLUMNS
  note = f"{more} more settings differ; see each run." if more > 0 else ""
  return page.table(columns, rows, f"{_MEANING} {note}", bar="accuracy_last")


def _seeds_table(groups: Sequence[Group]) -> str:
  if all(len(each.runs) == 1 for each in groups):
    return ""
  rows = [
    {key: each.mean(key) for key in _HEADS}
    | {
      "name": each.label,
      "seeds": ", ".join(str(run.seed) for run in each.runs),
      "finished": f"{_count(each)} of {len(each.runs)}",
    }
    for each in groups
  ]
  columns = {"name": "settings", "seeds": "seeds", "finished": "finished"}
  columns |= _HEADS
  few = any(_count(each) < _SEEDS for each in groups)
  note = "Mean ± standard deviation over the finished runs."
  if few:
    note += f" A claim needs {_SEEDS} seeds; some rows have fewer."
  return page.table(columns, rows, note)


def _count(each: Group) -> int:
  return sum(run.score("accuracy_last") is not None for run in each.runs)


def _folded(run: Run, name: str) -> str:
  last = run.score("accuracy_last")
  accuracy = "" if last is None else show("accuracy", last)
  parts = (run.method, _status(run), accuracy)
  remark = " · ".join(part for part in parts if part)
  return (
    f"<details><summary>{page.escape(name)} <span>{page.escape(remark)}</span>"
    f"</summary>{page.notes([*run.problems, *run.listed('notes')])}"
    f"{page.section('Comparison', _baselines(run))}"
    f"{page.section('Result', _results(run))}"
    f"{_details(run, _IMAGES_EACH)}</details>"
  )


def _details(run: Run, images: int) -> str:
  return (
    page.section("Accuracy of each class", figures.per_class(run))
    + page.section("Confusions", figures.confusion(run))
    + page.section("Images", figures.gallery(run, images))
    + page.section("Settings", _settings(run))
  )


def _results(run: Run) -> str:
  elsewhere = (*figures.SHOWN, "table", "notes")
  shown = {k: v for k, v in (run.result or {}).items() if k not in elsewhere}
  pairs = [(label(k), show(k, v)) for k, v in flatten(shown).items()]
  return page.facts(pairs)


def _settings(run: Run) -> str:
  pairs = [(key, page.raw(value)) for key, value in run.settings.items()]
  return page.facts(pairs, code=True)
