"""`dfkt adapt`, as a user types it."""

import dataclasses
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from dfkt_jax import data, models, teachers
from dfkt_jax import network as net
from dfkt_jax.cli import dispatch
from dfkt_jax.errors import UsageError
from dfkt_jax.methods import ADAPTERS
from dfkt_jax.network import Classification
from dfkt_jax.report.page import report
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import save_tiny, spec, tiny

TIMES = ("wall_seconds", "images_per_second", "device")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  place = tmp_path_factory.mktemp("inputs")
  save_tiny(place / "s")
  digits = data.load("digits/train")
  np.savez(place / "target", images=digits.images[:90])
  np.savez(place / "few", images=digits.images[:7])
  np.savez(place / "d", images=digits.images[:40], labels=digits.labels[:40])
  return place


def words(inputs, method, workdir, *flags, target="target"):
  return [
    str(word)
    for word in (
      *("adapt", method, "--source", inputs / "s", "--workdir", workdir),
      *("--target", f"npz:{inputs / target}.npz", "--batch-size", "16"),
      *("--eval-dataset", f"npz:{inputs / 'd.npz'}", "--mesh", "data=1"),
      *("--pool-cache", inputs / "cache", *flags),
    )
  ]


def adapt(*args, **kwargs):
  dispatch.main(words(*args, **kwargs))
  workdir = args[2]
  return json.loads((workdir / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTERS)
def test_every_method_adapts(inputs, tmp_path, method):
  result = adapt(inputs, method, tmp_path / "w", "--epochs", "2")
  assert result["target_images"] == 90
  assert result["steps"] == 12
  assert len(result["per_class_accuracy"]) == 10
  assert 0.0 <= result["source_accuracy"] <= 1.0
  last = read_metrics(tmp_path / "w")[-1]
  assert 0.0 <= last["target/marginal_entropy"] <= 1.0
  assert last["target/bn_drift"] > 0.0
  adapted, card = teachers.load(tmp_path / "w")
  source, _ = teachers.load(inputs / "s")
  assert card.arch == "convnet-half"
  images = data.load("digits/test").images[:8] / np.float32(255)
  before, after = (net.logits(n, images) for n in (source, adapted))
  assert not np.allclose(before, after)


def test_a_finished_run_is_not_run_again(inputs, tmp_path):
  first = adapt(inputs, "ada-bn", tmp_path / "w")
  assert adapt(inputs, "ada-bn", tmp_path / "w") == first


@pytest.mark.parametrize(
  ("flags", "target", "parts"),
  [
    ([], "few", ["--batch-size is 16", "7 images", "2 to 7"]),
    (["--batch-size", "1"], "target", ["--batch-size is 1", "2 to 90"]),
    (["--epochs", "0"], "target", ["--epochs 0", "from 1 up"]),
    (["--source", "nowhere"], "target", ["nowhere does not exist"]),
    (["--target", "folder:."], "target", ["folder:. holds no image"]),
  ],
)
def test_refusals(inputs, tmp_path, monkeypatch, capsys, flags, target, parts):
  # Not the user's folder, in which the quickstart may have left pictures.
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    adapt(inputs, "shot", tmp_path / "w", *flags, target=target)
  assert stop.value.code == UsageError.exit_code
  said = capsys.readouterr().err
  for part in parts:
    assert part in said
  assert not (tmp_path / "w").exists()


def test_a_class_map_maps_an_evaluation_set(inputs, tmp_path, capsys):
  flags = ["--eval-dataset", "None", "--class-map", "map.json"]
  with pytest.raises(SystemExit):
    adapt(inputs, "shot", tmp_path / "w", *flags)
  assert "--class-map map.json maps the classes of" in capsys.readouterr().err


def test_a_method_that_refuses_the_source_leaves_nothing(
  inputs, tmp_path, capsys
):
  plain = net.init(jax.random.key(0), models.build("lenet5", 10), spec(28))
  teachers.save(tmp_path / "s", plain, teachers.describe(plain, "lenet5"))
  with pytest.raises(SystemExit):
    adapt(inputs, "tent", tmp_path / "w", "--source", str(tmp_path / "s"))
  assert "LeNet5 has none" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


def test_images_that_cannot_be_read_are_noted(inputs, tmp_path):
  folder = tmp_path / "photographs"
  folder.mkdir()
  for index, image in enumerate(data.load("digits/train").images[:20]):
    Image.fromarray(image[..., 0]).save(folder / f"{index}.png")
  (folder / "7.png").write_text("no picture")
  flags = ["--target", f"folder:{folder}"]
  result = adapt(inputs, "ada-bn", tmp_path / "w", *flags)
  assert result["target_images"] == 19
  assert result["notes"][0] == (
    "left out, as they cannot be read: 1 target images"
  )
  assert result["device"] == "1 x cpu"  # of the eight that there are


def test_a_collapse_is_told(inputs, tmp_path, capsys):
  result = adapt(
    *(inputs, "tent", tmp_path / "w", "--lr", "3", "--epochs", "8"),
  )
  assert any("collapsed" in note for note in result["notes"])
  assert "collapsed" in capsys.readouterr().err


def start(inputs: Path, method: str, work: Path) -> subprocess.Popen:
  command = [
    *(sys.executable, "-m", "dfkt_jax"),
    *words(inputs, method, work, "--epochs", "20"),
    *("--checkpoint-seconds", "0.2"),
  ]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=environment,
    text=True,
  )


def outcome(work: Path):
  result = json.loads((work / "result.json").read_text())
  figures = {k: v for k, v in result.items() if k not in TIMES}
  rows = [
    {k: v for k, v in row.items() if k != "wall"} for row in read_metrics(work)
  ]
  return figures, rows, teachers.digest(work / "network")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["shot", "nrc"])
def test_kill_9_and_run_again(inputs, tmp_path, method):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  for work, moment in ((whole, None), (killed, 31), (killed, None)):
    process = start(inputs, method, work)
    deadline = time.monotonic() + 200
    while moment is not None and process.poll() is None:
      assert time.monotonic() < deadline
      rows = read_metrics(work) if work.exists() else []
      if rows and rows[-1]["step"] >= moment:
        process.send_signal(signal.SIGKILL)
      time.sleep(0.02)
    text, _ = process.communicate(timeout=300)
    assert moment is not None or process.returncode == 0, text
  assert "resuming after step" in text
  assert outcome(killed) == outcome(whole)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
  """A source that knows eight digits by name, and digits with all ten."""
  place = tmp_path_factory.mktemp("named")
  eight = tuple("01234567")
  network = jax.device_get(
    tiny(
      widths=(16, 32, 64),
      input_spec=dataclasses.replace(spec(), task=Classification(8, eight)),
    )
  )
  teachers.save(
    place / "s", network, teachers.describe(network, "convnet-half")
  )
  np.savez(place / "target", images=data.load("digits/train").images[:90])
  everything = {str(k): str(k) if k < 8 else None for k in range(10)}
  (place / "map.json").write_text(json.dumps(everything))
  everything.pop("3")
  (place / "gap.json").write_text(json.dumps(everything))
  (place / "wrong.json").write_text('{"0": "zero"}')
  (place / "list.json").write_text("[0, 1]")
  return place


def of_ten(named, workdir, *flags):
  return [
    str(word)
    for word in (
      *("adapt", "shot", "--source", named / "s", "--workdir", workdir),
      *("--target", f"npz:{named / 'target.npz'}", "--batch-size", "16"),
      *("--eval-dataset", "digits/test", "--mesh", "data=1", "--epochs", "1"),
      *("--pool-cache", named / "cache", *flags),
    )
  ]


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    ([], ["digits/test has label 9", "8 classes"]),
    (["--class-map", "gap.json"], ["lacks the class '3'"]),
    (["--class-map", "wrong.json"], ["maps '0' to 'zero'", "one of 0, 1, 2"]),
    (["--class-map", "list.json"], ["holds a list", "a JSON object"]),
    (["--class-map", "none.json"], ["none.json"]),
  ],
)
def test_classes_have_to_match(named, tmp_path, capsys, flags, parts):
  flags = [named / f if f.endswith(".json") else f for f in flags]
  with pytest.raises(SystemExit) as stop:
    dispatch.main(of_ten(named, tmp_path / "w", *flags))
  assert stop.value.code == UsageError.exit_code
  said = capsys.readouterr().err
  for part in parts:
    assert part in said


def test_an_open_set_is_scored_as_one(named, tmp_path):
  flags = ["--class-map", named / "map.json", "--open-set", "True"]
  dispatch.main(of_ten(named, tmp_path / "w", *flags))
  result = json.loads((tmp_path / "w" / "result.json").read_text())
  known, unknown = result["known_accuracy"], result["unknown_accuracy"]
  assert result["h_score"] == pytest.approx(
    2 * known * unknown / max(known + unknown, 1e-12), abs=1e-5
  )
  assert len(result["per_class_accuracy"]) == 9
  assert result["class_names"][-1] == "unknown"
  assert read_metrics(tmp_path / "w")[-1]["eval/h_score"] == result["h_score"]


def test_only_the_oracle_reads_the_targets_labels(inputs, tmp_path, capsys):
  flags = ["--target", "digits/test[:90]", "--oracle", "True"]
  result = adapt(inputs, "tent", tmp_path / "w", *flags)
  assert 0.0 <= result["oracle_online_accuracy"] <= 1.0
  assert 0.0 <= result["oracle_target_accuracy"] <= 1.0
  without = adapt(inputs, "tent", tmp_path / "v", *flags[:2])
  assert not any("oracle" in name for name in without)
  assert without["accuracy_last"] == result["accuracy_last"]
  with pytest.raises(SystemExit):
    adapt(inputs, "tent", tmp_path / "u", "--oracle", "True")
  assert "target.npz" in capsys.readouterr().err


def test_the_picture_shows_the_target_before_and_after(inputs, tmp_path):
  adapt(inputs, "ada-bn", tmp_path / "w")
  with Image.open(tmp_path / "w" / "images" / "embedding.png") as picture:
    assert picture.width > 600
  page = report([tmp_path / "w"])
  assert "embedding" in page.read_text()
