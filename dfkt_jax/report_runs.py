"""What workdirs hold, and which of them are one experiment with other seeds."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path
import statistics
from typing import Any, NamedTuple

from dfkt_jax import files, metrics, report_plots
from dfkt_jax.errors import UsageError
from dfkt_jax.report_html import Mean, is_number, raw
from dfkt_jax.report_plots import Curve

# These say which of the runs it is, not what was run.
_IDENTITY = ("seed", "workdir", "out")
_NAMES = ("result.json", "metrics.jsonl", "config.json")


@dataclasses.dataclass(frozen=True)
class Run:
  """One workdir, as far as it can be read."""

  path: Path
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  result: dict[str, Any] | None
  problems: tuple[str, ...]

  @functools.cached_property
  def curves(self) -> dict[str, Curve]:
    return report_plots.curves(self.rows)

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """The configuration under dotted keys."""
    return flatten(self.config)

  @property
  def last_step(self) -> int:
    return max((row["step"] for row in self.rows), default=0)

  @property
  def method(self) -> str:
    named = (self.result or {}).get("method") or self.config.get("method")
    if isinstance(named, Mapping):
      named = named.get("name")
    return str(named or "unknown method")

  @property
  def seed(self) -> Any:
    return (self.result or {}).get("seed", self.settings.get("seed"))

  @property
  def written(self) -> float:
    """When the run last wrote something, in seconds of the epoch."""
    path = next(p for name in _NAMES if (p := self.path / name).is_file())
    return path.stat().st_mtime

  @property
  def kind(self) -> str:
    """What was run, whichever the seed: equal for runs to be averaged."""
    same = {k: v for k, v in self.settings.items() if not _is_identity(k)}
    return json.dumps(same or self.method, sort_keys=True)

  @property
  def teacher_accuracy(self) -> float | None:
    teacher = (self.result or {}).get("teacher")
    inner = teacher.get("accuracy") if isinstance(teacher, Mapping) else None
    found = self.score("teacher_accuracy")
    return found if found is not None or not is_number(inner) else inner

  def score(self, key: str) -> float | None:
    """A number of the result, if it has it."""
    value = (self.result or {}).get(key)
    return value if is_number(value) else None

  def listed(self, key: str) -> list[Any]:
    """A list of the result, empty if it has none."""
    value = (self.result or {}).get(key)
    return value if isinstance(value, list) else []


class Group(NamedTuple):
  """Runs whose settings differ only in the seed."""

  label: str
  runs: list[Run]

  def mean(self, key: str) -> Mean | None:
    """Over the finished runs that have the number."""
    found = [run.score(key) for run in self.runs]
    return mean([value for value in found if value is not None])


def load(workdir: Path) -> Run:
  """Reads a workdir; a broken file in it is a problem to report, not a stop."""
  if not any((workdir / name).is_file() for name in _NAMES):
    raise UsageError(
      f"{os.fspath(workdir)} is no workdir: expected a folder with one of "
      f"{', '.join(_NAMES)}; check the path."
    )
  problems: list[str] = []
  config = _object(workdir / "config.json", problems)
  result = _object(workdir / "result.json", problems)
  rows = metrics.read_metrics(workdir)
  return Run(workdir, config or {}, rows, result, tuple(problems))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested mappings as one, with dotted keys."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def differing(runs: Sequence[Run]) -> list[str]:
  """The settings in which runs differ, the method first; seeds aside."""
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  found = [
    key
    for key in keys
    if not _is_identity(key) and len({_value(run, key) for run in runs}) > 1
  ]
  return sorted(found, key=lambda key: "method" not in key)


def group(runs: Sequence[Run]) -> list[Group]:
  """Runs by what was run, each named by what sets it apart."""
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
  """The mean with its sample standard deviation; None of nothing."""
  if not values:
    return None
  deviation = statistics.stdev(values) if len(values) > 1 else None
  return Mean(statistics.mean(values), deviation)


def _label(run: Run, keys: Sequence[str]) -> str:
  parts = [
    raw(run.settings[key])
    if "method" in key
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
  problems.append(f"{path} holds no JSON object and was left out.")
  return None
