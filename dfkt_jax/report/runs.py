"""Workdirs as the report reads them, grouped by experiment.

Settings of version 0.1 have other names than those of 0.2: the method of a
distillation was `method` and is `source`, its recipe was `transfer` or `study`
(`course` in an adaptation), and its steps were those of the nested `kd`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import statistics
from typing import Any, NamedTuple

from dfkt_jax import files
from dfkt_jax.errors import UsageError
from dfkt_jax.report import plots
from dfkt_jax.report.html import Mean, is_number, raw
from dfkt_jax.report.plots import Curve
from dfkt_jax.runs import metrics

# Settings that tell the runs of one experiment apart.
_IDENTITY = ("seed", "workdir", "out")
# Settings that are the name of a method, not one of its hyper-parameters.
_METHODS = ("method", "method.name", "source.name", "learner.name")
# Where the steps of a run are, in 0.2 and in 0.1.
_STEPS = (
  "steps",
  "recipe.steps",
  "transfer.kd.steps",
  "study.kd.steps",
  "method.kd.steps",
  "course.steps",
)
# With these the log also counts steps before the student begins.
_WARMUP = (
  "recipe.offline",
  "recipe.warmup_rounds",
  "transfer.offline",
  "transfer.warmup_rounds",
)
_NAMES = ("result.json", "metrics.jsonl", "config.json")


@dataclasses.dataclass(frozen=True)
class Run:
  """The readable contents of one workdir."""

  path: Path
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  result: dict[str, Any] | None
  problems: tuple[str, ...]

  @functools.cached_property
  def curves(self) -> dict[str, Curve]:
    """The curve of each metric."""
    return plots.curves(self.rows)

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """The configuration under dotted keys."""
    return flatten(self.config)

  @property
  def last_step(self) -> int:
    """The last step in the log."""
    return max((row["step"] for row in self.rows), default=0)

  @property
  def total_steps(self) -> int | None:
    """The steps of the whole run as its log counts them, where known."""
    of_batch = self.config.get("command") == "synthesize"
    if of_batch or any(self.settings.get(key) for key in _WARMUP):
      return None
    found = [self.settings.get(key) for key in _STEPS]
    return next((n for n in found if isinstance(n, int) and n), None)

  @property
  def method(self) -> str:
    """The name of the method, or of the source of a distillation."""
    name = (self.result or {}).get("method") or self.config.get("method")
    source = self.config.get("source")  # in an adaptation, a path
    if not name and isinstance(source, Mapping):
      name = source
    if isinstance(name, Mapping):
      name = name.get("name")
    return str(name or "unknown method")

  @property
  def seed(self) -> Any:
    """The seed, in the form that the files have it."""
    return (self.result or {}).get("seed", self.settings.get("seed"))

  @property
  def written(self) -> float:
    """The time of the run's last output, in seconds since the epoch."""
    path = next(p for name in _NAMES if (p := self.path / name).is_file())
    return path.stat().st_mtime

  @property
  def kind(self) -> str:
    """All settings but the seed, equal for runs that can be averaged."""
    same = {k: v for k, v in self.settings.items() if not _is_identity(k)}
    return json.dumps(same or self.method, sort_keys=True)

  @property
  def teacher_accuracy(self) -> float | None:
    """The accuracy of the teacher, if the result has it."""
    teacher = (self.result or {}).get("teacher")
    inner = teacher.get("accuracy") if isinstance(teacher, Mapping) else None
    found = self.score("teacher_accuracy")
    return found if found is not None or not is_number(inner) else inner

  def score(self, key: str) -> float | None:
    """Return a number of the result, or None."""
    value = (self.result or {}).get(key)
    return value if is_number(value) else None

  def listed(self, key: str) -> list[Any]:
    """Return a list of the result, empty if it has none."""
    value = (self.result or {}).get(key)
    return value if isinstance(value, list) else []


class Group(NamedTuple):
  """Runs that differ only in the seed."""

  label: str
  runs: list[Run]

  def mean(self, key: str) -> Mean | None:
    """Average a number over the finished runs that have it."""
    found = [run.score(key) for run in self.runs]
    return mean([value for value in found if value is not None])


def load(workdir: Path) -> Run:
  """Read a workdir; a broken file in it is reported on the page.

  Raises:
    UsageError: the folder is not a workdir.
  """
  if not any((workdir / name).is_file() for name in _NAMES):
    raise UsageError(
      f"{os.fspath(workdir)} is not a workdir: expected a folder with one of "
      f"{', '.join(_NAMES)}; check the path."
    )
  problems: list[str] = []
  config = _object(workdir / "config.json", problems)
  result = _object(workdir / "result.json", problems)
  rows = metrics.read_metrics(workdir)
  return Run(workdir, config or {}, rows, result, tuple(problems))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flatten nested mappings into one with dotted keys."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def differing(runs: Sequence[Run]) -> list[str]:
  """Return the settings in which runs differ, methods first, without seeds."""
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  found = [
    key
    for key in keys
    if not _is_identity(key) and len({_value(run, key) for run in runs}) > 1
  ]
  return sorted(found, key=lambda key: key not in _METHODS)


def group(runs: Sequence[Run]) -> list[Group]:
  """Group runs by experiment, each with a label of its distinctive settings."""
  kinds: dict[str, list[Run]] = {}
  for run in runs:
    kinds.setdefault(run.kind, []).append(run)
  keys = differing(runs)[:3]
  labels = [_label(members[0], keys) for members in kinds.values()]
  return [
    Group(
      text if labels.count(text) == 1 else f"{text} ({members[0].path.name})",
      members,
    )
    for text, members in zip(labels, kinds.values())
  ]


def mean(values: Sequence[float]) -> Mean | None:
  """Return the mean with its sample standard deviation; None of no values."""
  if not values:
    return None
  deviation = statistics.stdev(values) if len(values) > 1 else None
  return Mean(statistics.mean(values), deviation)


def _label(run: Run, keys: Sequence[str]) -> str:
  parts = [
    raw(run.settings[key])
    if key in _METHODS
    else f"{key.rpartition('.')[2]} {raw(run.settings[key])}"
    for key in keys
    if key in run.settings
  ]
  return ", ".join(parts) or run.method


def _value(run: Run, key: str) -> str | None:
  return raw(run.settings[key]) if key in run.settings else None


def _is_identity(key: str) -> bool:
  return key.rpartition(".")[2] in _IDENTITY


def _object(path: Path, problems: list[str]) -> dict[str, Any] | None:
  if not path.is_file():
    return None
  try:
    value = files.read_json(path)
  except UsageError as error:
    problems.append(str(error))
    return None
  if isinstance(value, dict):
    return value
  problems.append(f"{path} does not hold a JSON object and was left out.")
  return None
