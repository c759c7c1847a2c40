"""The comparison, with a reference that only prints a speed."""

import io
import json
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from dfkt_jax.bench import against, timing
from dfkt_jax.bench.against import Torch
from dfkt_jax.commands import bench
from dfkt_jax.commands.bench import Bench
from dfkt_jax.devices.mesh import cpu_count, make_mesh
from dfkt_jax.errors import DfktError, UsageError
from tests.assets import shared, torch
from tests.bench.networks import SETTINGS, small  # noqa: F401

REFERENCE = """
import json, os, sys
args = sys.argv[1:]
value = lambda flag: args[args.index(flag) + 1]
speed = 40.0 if "--channels-last" in args else 50.0
print("noise")
print(json.dumps({
    "framework": "torch", "workload": value("--workload"),
    "images_per_second": speed, "steps": value("--steps"),
    "student_steps": value("--student-steps"),
    "threads": os.environ["OMP_NUM_THREADS"]}))
"""


def records(*speeds):
  common = dict(workload="distill", arch="resnet20", batch=16, device="cpu")
  common |= dict(precision="f32", device_kind="cpu", threads=2, devices=1)
  return [{**common, "images_per_second": speed} for speed in speeds]


def test_the_ratio_is_against_the_faster_layout_pair_by_pair():
  theirs = {
    Torch("contiguous"): records(10.0, 20.0, 40.0),
    Torch("channels_last"): records(100.0, 10.0, 10.0),
  }
  found = against.ratio(records(20.0, 10.0, 60.0), theirs)
  assert found["torch_layout"] == "contiguous"
  assert (found["min"], found["ratio"], found["max"]) == (0.5, 1.5, 2.0)
  assert found["torch_images_per_second"] == 20.0


def test_a_gpu_has_two_comparisons():
  ways = against._ways("gpu")
  assert {(w.layout, w.compile) for w in ways} == {
    (layout, compiled)
    for layout in ("contiguous", "channels_last")
    for compiled in (False, True)
  }
  assert Torch("channels_last", True).flags == ("--channels-last", "--compile")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("devices", [1, 2])
def test_ours_and_theirs_alternate(tmp_path, monkeypatch, devices):
  reference = tmp_path / "reference.py"
  reference.write_text(REFERENCE)
  monkeypatch.setattr(against, "find_reference", lambda given: given)
  console = Console(soft_wrap=True, record=True, file=io.StringIO())
  Bench(
    *("inversion", SETTINGS),
    against="torch",
    reference=reference,
    mesh=f"data={devices}",
    repeats=2,
    json=tmp_path / "ratios.json",
  ).run(console)
  text = console.export_text()
  records = [json.loads(line) for line in text.splitlines() if line[:1] == "{"]
  assert [r["framework"] for r in records] == ["jax", "torch", "torch"] * 2
  assert (records[1]["steps"], records[1]["student_steps"]) == ("2", "2")
  assert records[1]["threads"] == str(cpu_count())
  (ratio,) = json.loads((tmp_path / "ratios.json").read_text())["ratios"]
  ours = sorted(r["images_per_second"] for r in records[::3])
  assert ratio["workload"] == "inversion"
  assert records[0]["devices"] == records[3]["devices"] == devices
  assert ratio["devices"] == devices
  assert ratio["torch_layout"] == "contiguous"
  assert ratio["min"] == pytest.approx(ours[0] / 50, rel=0.01)
  assert ratio["max"] == pytest.approx(ours[1] / 50, rel=0.01)
  assert "eager, contiguous" in text


def test_a_reference_that_fails_is_quoted(tmp_path):
  reference = tmp_path / "reference.py"
  reference.write_text("raise SystemExit('no such device')")
  with pytest.raises(DfktError, match="code 1 .*'distill'.* no such device"):
    against._run("distill", SETTINGS, reference, Torch("contiguous"), "cpu")


def test_missing_files_and_packages_are_named(tmp_path, monkeypatch):
  missing = tmp_path / "none.py"
  with pytest.raises(
    UsageError, match=r"none\.py does not exist: .*--reference"
  ):
    against.find_reference(missing)
  monkeypatch.setenv(against.VARIABLE, str(missing))
  with pytest.raises(UsageError, match=r"none\.py"):
    against.find_reference(None)
  missing.write_text("")
  monkeypatch.setitem(sys.modules, "torch", None)
  monkeypatch.setattr(against.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UsageError, match="needs PyTorch"):
    against.find_reference(missing)


def test_zero_repeats_are_refused(monkeypatch):
  monkeypatch.setattr(against, "find_reference", lambda given: given)
  command = Bench("all", SETTINGS, against="torch", repeats=0)
  with pytest.raises(UsageError, match="--repeats"):
    command.run(Console())


def test_several_gpus_against_one_are_refused(monkeypatch):
  gpus = np.array([[types.SimpleNamespace(platform="gpu")]] * 2)
  mesh = types.SimpleNamespace(devices=gpus, size=2)
  monkeypatch.setattr(bench, "parse_mesh", lambda text: mesh)
  monkeypatch.setattr(against, "find_reference", lambda given: given)
  command = Bench("all", SETTINGS, against="torch", mesh="data=2")
  with pytest.raises(UsageError, match="--mesh data=2 is 2 gpu devices .* one"):
    command.run(Console())


@pytest.mark.slow
def test_the_real_reference_accepts_our_flags():
  torch()
  reference = shared("bench/torch_reference.py")
  record = against._run(
    "inversion", SETTINGS, reference, Torch("channels_last"), "cpu"
  )
  ours = timing.records(["inversion"], SETTINGS, make_mesh(1))
  assert record["channels_last"]
  assert record["batch"] == SETTINGS.batch
  assert set(record) - set(next(ours)) == {"compile", "channels_last"}
