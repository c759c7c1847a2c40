"""The report is one valid page with the contents of the workdirs."""

from html.parser import HTMLParser
import json
import math
import re
import time

import numpy as np
import pytest

from dfkt_jax import files, images
from dfkt_jax.errors import UsageError
from dfkt_jax.report import plots, runs
from dfkt_jax.report.page import report
from dfkt_jax.runs.metrics import MetricsWriter

_VOID = ("meta", "img", "br", "hr", "link", "input")
_RESULT = {
  "command": "distill",
  "method": "cmi",
  "teacher": {"arch": "resnet34", "sha256": "ab12"},
  "seed": 0,
  "steps": 200,
  "wall_seconds": 734.2,
  "device": "cpu",
  "accuracy_last": 0.9,
  "accuracy_best": 0.93,
  "accuracy_mean": 0.85,
  "agreement": 0.91,
  "teacher_accuracy": 0.95,
  "images_synthesized": 768000,
  "images_per_second": 3123.4,
}


class Page(HTMLParser):
  """Parse a page, fail on unbalanced tags, and collect tags and texts."""

  def __init__(self, path):
    super().__init__()
    self.open, self.tags, self.attributes = [], [], []
    self.pieces = []
    self.source = path.read_text()
    self.feed(self.source)
    self.close()
    assert self.open == []
    self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.pieces.append(data)

  def values(self, name):
    return [value for key, value in self.attributes if key == name]


def _workdir(path, config=None, result=None, rows=(), pictures=()):
  files.write_json(path / "config.json", config or {"method": "cmi", "seed": 0})
  with MetricsWriter(path) as writer:
    for step, values in rows:
      writer.write(step, values)
  for name in pictures:
    picture = images.grid(np.full((4, 8, 8, 1), 0.5))
    images.save_png(path / "images" / name, picture)
  if result is not None:
    files.write_json(path / "result.json", result)
  return path


def _rows(steps=200, gain=1.0):
  for step in range(0, steps + 1, 20):
    yield step, {"distill/kl": math.exp(-step / 50), "synth/bn": 3.0}
    accuracy = gain * (0.9 - 0.8 * math.exp(-step / 50))
    yield step, {"eval/accuracy": accuracy, "eval/agreement": accuracy}


def test_one_run(tmp_path):
  table = [
    {"name": "teacher", "accuracy": 0.95, "parameters": 21_300_000},
    {"name": "noise images", "accuracy": 0.31, "seconds": 3.0},
  ]
  result = _RESULT | {
    "table": table,
    "notes": ["Evaluated on digits."],
    "per_class_accuracy": [0.99, 0.5, None],
    "class_names": ["cat", "$dog$", "猫"],
    "confusion": [[9, 1, 0], [5, 5, 0], [0, 0, 0]],
  }
  config = {"method": "cmi", "seed": 0, "optimizer": {"lr": 0.1, "b": [1, 2]}}
  pictures = [f"pool-{step:06d}.png" for step in range(100, 900, 100)]
  path = _workdir(tmp_path / "run", config, result, _rows(), pictures)
  out = report([path])
  assert out == path / "report.html"
  page = Page(out)
  for text in (
    "distill · cmi",
    time.strftime("%Y-"),
    "90.00 % accuracy, last iterate",
    "93.00 % accuracy, best over the run",
    "85.00 % accuracy, mean over the run",
    "teacher, 95.00 %",
    "Evaluated on digits.",
    "21,300,000",
    "31.00 %",
    "12 min 14 s",
    "768,000",
    "teacher.arch resnet34",
    "optimizer.lr 0.1",
    "optimizer.b [1, 2]",
    "Lowest: $dog$ (50.00 %), cat (99.00 %)",
    "rows: true class",
    "pool, step 800",
    f"2 more in {path / 'images'}",
  ):
    assert text in page.text
  # Latest first, six at most, each with a description.
  alts = page.values("alt")
  assert len(alts) == 6
  assert alts[0] == "Grid of images: pool, step 800"
  assert alts[-1] == "Grid of images: pool, step 300"
  labels = page.values("aria-label")
  assert any(label.startswith("distill/kl: ") for label in labels)
  assert any("teacher 0.95" in label for label in labels)
  assert len(labels) == page.tags.count("svg") == 4


def test_the_page_loads_nothing_from_the_network(tmp_path):
  path = _workdir(
    tmp_path, result=_RESULT, rows=_rows(), pictures=["000100.png"]
  )
  page = Page(report([path]))
  assert not re.search(r"https?://|url\((?!#)|@import", page.source)
  assert "script" not in page.tags
  assert "link" not in page.tags
  assert all(s.startswith("data:image/png;base64,") for s in page.values("src"))
  references = page.values("href") + re.findall(r"url\((#[^)]*)", page.source)
  assert references
  assert {reference[1:] for reference in references} <= {*page.values("id")}
  assert "default-src 'none'" in page.source
  assert "prefers-color-scheme: dark" in page.source
  # Figures take every color from the page.
  assert not re.search(r"(fill|stroke): #", page.source)


def test_everything_is_escaped(tmp_path):
  evil = '<script>alert("x")</script>'
  config = {"method": {"name": evil}, evil: {evil: evil}, "seed": evil}
  result = {
    **_RESULT,
    "method": evil,
    "device": evil,
    "notes": [evil],
    "table": [{"name": evil, evil: 1.0}, evil],
    "per_class_accuracy": [0.5, 0.6],
    "class_names": [evil, evil],
    "confusion": [[1, 0], [0, 1]],
    evil: evil,
  }
  rows = [(1, {f"{evil}/kl": 1.0}), (2, {f"{evil}/kl": 0.5})]
  name = '<b onload="x">-1.png'
  one = _workdir(tmp_path / "<i>1", config, result, rows, [name])
  two = _workdir(tmp_path / "<i>2", config | {"lr": evil}, result, rows)
  for paths in ([one], [one, two]):
    page = Page(report(paths, tmp_path / "out.html"))
    assert not {"script", "b>", "i"} & set(page.tags)
    assert "onload" not in dict(page.attributes)
    assert evil in page.text


def test_an_unfinished_run_is_reported_as_such(tmp_path):
  config = {"method": "dafl", "steps": 500, "seed": 3}
  path = _workdir(tmp_path, config, rows=_rows(120))
  page = Page(report([path]))
  assert "unfinished, last step 120" in page.text
  assert "120 of 500 steps done" in page.text
  assert "eval/accuracy at step 120, not final" in page.text
  assert "last iterate" not in page.text


def test_broken_files_are_reported_and_the_rest_is_shown(tmp_path):
  path = _workdir(tmp_path, rows=_rows(), pictures=["000001.png"])
  (path / "images" / "000002.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
  (path / "result.json").write_text('{"accuracy_last": 0.')
  (path / "config.json").write_text("[1]")
  with open(path / "metrics.jsonl", "a") as file:
    file.write('\xff\n{"step": 999, "distill/')
  page = Page(report([path]))
  assert "result.json is not valid JSON" in page.text
  assert "config.json does not hold a JSON object" in page.text
  assert "000002.png is not a complete PNG" in page.text
  assert "unfinished, last step 200" in page.text
  assert page.values("alt") == ["Grid of images: step 1"]


def test_a_workdir_with_hardly_any_contents(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  assert "unfinished, last step 0" in Page(report([tmp_path])).text
  files.write_json(tmp_path / "result.json", {"method": "cmi", "steps": 5})
  page = Page(report([tmp_path]))
  assert "Accuracy is unknown" in page.text
  assert "svg" not in page.tags


def test_selection_on_test_labels_is_reported(tmp_path):
  one = _workdir(tmp_path / "1", result=_RESULT | {"oracle": True})
  two = _workdir(tmp_path / "2", result=_RESULT)
  assert "selected on test labels" in Page(report([one])).text
  assert "finished, selected on" in Page(report([one, two])).text
  assert "selected on test labels" not in Page(report([two])).text


def test_non_finite_metrics_are_counted_and_marked(tmp_path):
  values = [1.0, math.nan, 2.0, math.inf, 1e30]
  rows = [
    (s, {"synth/tv": v, "synth/all": math.nan}) for s, v in enumerate(values)
  ]
  page = Page(report([_workdir(tmp_path, rows=rows)]))
  assert "tv 2 not finite" in page.text
  assert "all 5 not finite" in page.text
  assert page.source.count("var(--bad)") > 3


def test_a_big_image_is_embedded_reduced(tmp_path):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (1300, 700, 3), np.uint8)
  path = _workdir(tmp_path)
  images.save_png(path / "images" / "pool-1.png", picture)
  page = Page(report([path]))
  assert "pool, step 1, shown reduced" in page.text
  (source,) = page.values("src")
  assert source.startswith("data:image/jpeg")


def _seeds(tmp_path):
  """Yield three seeds of cmi, one of them unfinished, and one run of dafl."""
  for seed, last in ((0, 0.90), (1, 0.92), (2, None)):
    config = {"method": "cmi", "seed": seed, "workdir": f"w{seed}"}
    result = last and _RESULT | {"seed": seed, "accuracy_last": last}
    steps = 200 if last else 100
    yield _workdir(
      tmp_path / f"cmi{seed}", config, result, _rows(steps, last or 1)
    )
  config = {"method": "dafl", "seed": 0, "workdir": "w", "lr": 0.5}
  result = _RESULT | {"method": "dafl", "accuracy_last": 0.8}
  yield _workdir(tmp_path / "dafl", config, result, _rows(gain=0.8))


def test_several_runs_are_compared(tmp_path):
  paths = list(_seeds(tmp_path))
  out = report(paths)
  assert out == tmp_path / "report.html"
  page = Page(out)
  for text in (
    "4 runs · cmi, dafl",
    "run method lr seed last iterate",
    "cmi1 cmi – 1 92.00 %",
    "dafl dafl 0.5 0 80.00 %",
    "unfinished, last step 100",
    "cmi 0, 1, 2 2 of 3 91.00 ± 1.41 %",
    "A claim needs 3 seeds; some rows have fewer.",
    "Bands are one standard deviation over seeds.",
    "dafl, lr 0.5",
  ):
    assert text in page.text
  # The workdir identifies a run and is not a setting that differs.
  assert "workdir" not in page.text.split("Each run")[0]
  assert page.tags.count("details") == 4


def test_seeds_of_one_experiment_have_one_headline(tmp_path):
  cmi = list(_seeds(tmp_path))[:3]
  page = Page(report(cmi, tmp_path / "sub" / "seeds.html"))
  assert "91.00 ± 1.41 % accuracy, last iterate" in page.text
  assert "95.00 % teacher accuracy" in page.text
  assert "over 2 seeds" in page.text


def test_a_folder_that_is_not_a_workdir_is_refused(tmp_path):
  with pytest.raises(UsageError, match="No workdir"):
    report([])
  with pytest.raises(UsageError, match="is not a workdir"):
    report([tmp_path])
  with pytest.raises(UsageError, match="gone"):
    report([tmp_path / "gone"])
  path = _workdir(tmp_path / "run")
  with pytest.raises(UsageError, match="out.html"):
    report([path], path / "config.json" / "out.html")


def test_a_resumed_step_counts_once():
  rows = [
    {"step": 2, "a": 1},
    {"step": 1, "a": 5.0, "on": True},
    {"step": 2, "a": 3, "text": "x"},
  ]
  curves = plots.curves(rows)
  assert list(curves) == ["a"]
  assert curves["a"].steps.tolist() == [1, 2]
  assert curves["a"].values.tolist() == [5.0, 3.0]


def test_mean_curve_is_over_the_steps_that_all_runs_have():
  one = plots.Curve(np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0]))
  two = plots.Curve(np.array([5, 15]), np.array([2.5, math.nan]))
  curve, deviation = plots.mean_curve([one, two])
  assert curve.steps.tolist() == [5, 10, 15]
  assert curve.values[0] == pytest.approx(1.5)
  assert deviation[0] == pytest.approx(math.sqrt(2))
  assert np.isnan(curve.values[2])
  apart = plots.Curve(np.array([50]), np.array([1.0]))
  assert plots.mean_curve([one, apart])[0].steps.size == 0


def test_spikes_do_not_flatten_the_curve():
  values = np.linspace(1, 2, 200)
  values[7] = 1e6
  low, high = plots.robust_range(values)
  assert low < 1 < 2 < high < 3
  assert plots.robust_range(np.array([math.nan])) == (0.0, 1.0)
  low, high = plots.robust_range(np.array([5.0, 5.0]))
  assert low < 5 < high
  # A start far from the rest is not a spike if there are few points.
  low, _ = plots.robust_range(np.array([0.1, 0.8, 0.85, 0.9]))
  assert low < 0.1


def test_runs_that_differ_only_in_the_seed_are_one_group(tmp_path):
  found = [runs.load(path) for path in _seeds(tmp_path)]
  groups = runs.group(found)
  assert [(g.label, len(g.runs)) for g in groups] == [
    ("cmi", 3),
    ("dafl, lr 0.5", 1),
  ]
  assert runs.differing(found) == ["method", "lr"]


_KD = {"name": "KD", "lr": 0.1}
# What config.json holds, by the version that wrote it and the command.
_CONFIGS = {
  "0.1 distill": {
    "command": "distill",
    "method": {"name": "DFQ", "latent": 256},
    "transfer": {"name": "Transfer", "kd": {**_KD, "steps": 500}},
  },
  "0.1 distill pool": {
    "command": "distill",
    "method": {"name": "DFQ", "latent": 256},
    "study": {"name": "Study", "kd": {**_KD, "steps": 500}},
  },
  "0.1 distill stored": {
    "command": "distill",
    "method": {"name": "DFQ", "kd": {**_KD, "steps": 500}},
  },
  "0.1 adapt": {
    "command": "adapt",
    "method": {"name": "DFQ", "latent": 256},
    "course": {"name": "Course", "steps": 500},
    "source": "runs/source/network",
  },
  "0.2 distill": {
    "version": "0.2",
    "command": "distill",
    "source": {"name": "DFQ", "latent": 256},
    "learner": _KD,
    "recipe": {"name": "Recipe", "steps": 500, "offline": False},
  },
  "0.2 adapt": {
    "version": "0.2",
    "command": "adapt",
    "method": {"name": "DFQ", "latent": 256},
    "recipe": {"name": "Recipe", "steps": 500},
    "source": "runs/source/network",
  },
}


@pytest.mark.parametrize("config", _CONFIGS.values(), ids=_CONFIGS)
def test_workdirs_of_both_versions_are_read(tmp_path, config):
  path = _workdir(tmp_path / "run", {**config, "seed": 0}, rows=_rows(120))
  page = Page(report([path]))
  assert f"{config['command']} · DFQ" in page.text
  assert "120 of 500 steps done" in page.text
  other = _workdir(tmp_path / "other", {**config, "seed": 1}, rows=_rows(120))
  (both,) = runs.group([runs.load(path), runs.load(other)])
  assert both.label == "DFQ"
  assert len(both.runs) == 2


def test_sources_and_learners_name_the_groups(tmp_path):
  config = _CONFIGS["0.2 distill"]
  changes = (
    {},
    {"learner": {"name": "DFNDLearner", "lr": 0.1}},
    {"source": {"name": "CMI", "latent": 256}},
    {"source": {"name": "DFQ", "latent": 8}},
  )
  found = [
    runs.load(_workdir(tmp_path / str(index), {**config, **change}))
    for index, change in enumerate(changes)
  ]
  assert [group.label for group in runs.group(found)] == [
    "DFQ, KD, latent 256",
    "DFQ, DFNDLearner, latent 256",
    "CMI, KD, latent 256",
    "DFQ, KD, latent 8",
  ]


def test_steps_of_a_warm_up_are_not_counted_as_the_runs(tmp_path):
  config = _CONFIGS["0.2 distill"]
  recipe = {**config["recipe"], "offline": True}
  path = _workdir(tmp_path, {**config, "recipe": recipe}, rows=_rows(120))
  page = Page(report([path]))
  assert "120 steps done" in page.text


def test_the_page_of_many_classes_and_steps_is_small(tmp_path):
  rng = np.random.default_rng(0)
  result = _RESULT | {
    "per_class_accuracy": rng.uniform(0, 1, 1000),
    "confusion": rng.integers(0, 9, (30, 30)),
  }
  path = _workdir(tmp_path, result=result)
  lines = (
    json.dumps({"step": step, "distill/kl": 1 / (step + 1)})
    for step in range(20_000)
  )
  (path / "metrics.jsonl").write_text("\n".join(lines))
  out = report([path])
  assert "true class prediction images" in Page(out).text
  assert out.stat().st_size < 300_000
