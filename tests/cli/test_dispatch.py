"""Commands as a user types them, in this process."""

import dataclasses
import json
from pathlib import Path
import pickle
import re

import jax
import numpy as np
import pytest

from dfkt_jax import data, methods, teachers
from dfkt_jax.cli import dispatch
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.runs.metrics import read_metrics
from dfkt_jax.synthesis.noise import Noise
from tests.assets import package_file, shared_data
from tests.networks import tiny

ROOT = Path(__file__).parents[2]
SMALL = [
  *("--steps", "4", "--student-steps", "2", "--batch-size", "16"),
  *("--synthesis-batch-size", "16", "--evaluations", "2"),
]
GENERATOR = ["--latent", "4", "--generator-widths", "4", "4", "4"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A network directory of a small BatchNorm teacher of 8x8 digits."""
  place = tmp_path_factory.mktemp("teacher") / "t"
  network = tiny(widths=(16, 32, 64))
  network = jax.device_get(network)
  teachers.save(place, network, teachers.describe(network, "convnet-half"))
  return place


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Sixty labelled 8x8 images as an npz file."""
  place = tmp_path_factory.mktemp("data") / "few.npz"
  chosen = data.load("digits/test")
  np.savez(place, images=chosen.images[:60], labels=chosen.labels[:60])
  return f"npz:{place}"


def run(*args):
  dispatch.main([str(arg) for arg in args])


def refused(capsys, code, *args):
  """The one sentence on standard error."""
  with pytest.raises(SystemExit) as stop:
    run(*args)
  assert stop.value.code == code
  error = capsys.readouterr().err
  assert "Traceback" not in error
  assert error.startswith("dfkt: ")
  assert error.count("\n") == 1
  return error


def test_help_of_every_command(capsys):
  run("--help")
  overview = capsys.readouterr().out
  for command in dispatch._COMMANDS:
    assert command.split()[0] in overview
  for words in (["distill"], ["distill", "dfq"], ["synthesize", "dfq"]):
    with pytest.raises(SystemExit) as stop:
      run(*words, "--help")
    assert stop.value.code == 0
  text = capsys.readouterr().out
  for flag in ("--steps", "--batch-size", "--seed", "--lr", "--bn-weight"):
    assert flag in text


def test_help_shows_the_flags_that_decide_about_others(capsys):
  def help_of(*words):
    with pytest.raises(SystemExit) as stop:
      run(*words, "--help")
    assert stop.value.code == 0
    return capsys.readouterr().out

  text = help_of("distill")
  assert "usage: dfkt distill SOURCE [--learner LEARNER] ..." in text
  assert "LEARNER is one of kd, dfnd, odsd, or path/to/file.py" in text
  assert "for a source of your own" in text
  assert "METHOD" not in text
  assert "usage: dfkt adapt METHOD ..." in help_of("adapt")
  own = help_of("distill", "dfnd")
  assert "--learner kd|dfnd|odsd|path/to/file.py:ClassName" in own
  assert "(default: dfnd)" in own
  chosen = help_of("distill", "dfq", "--learner", "odsd")
  assert "(default: odsd)" in chosen
  assert "--denoise" in chosen
  text = help_of("teacher", "train", "--recipe", "sfda")
  assert "--recipe supervised|sfda" in text
  assert "(default: sfda)" in text


def test_a_choice_of_learner_or_recipe_needs_a_value(capsys):
  for words in (
    ("distill", "dfq", "--learner"),
    ("teacher", "train", "--recipe"),
  ):
    with pytest.raises(SystemExit) as stop:
      run(*words)
    assert stop.value.code == 2
    assert f"'{words[-1]}'" in capsys.readouterr().err


def test_distill_evaluate_export_and_report(teacher, digits, tmp_path, capsys):
  work = tmp_path / "w"
  command = (
    *("distill", "dfq", "--teacher", teacher, "--student", "convnet-half"),
    *("--workdir", work, "--eval-dataset", digits, *SMALL, *GENERATOR),
    *("--lr", "0.05", "--seed", "3", "--bn-weight", "2.5"),
  )
  run(*command)
  result = json.loads((work / "result.json").read_text())
  config = json.loads((work / "config.json").read_text())
  assert config["source"]["bn_weight"] == 2.5
  assert config["learner"]["lr"] == 0.05
  assert result["seed"] == 3
  assert result["steps"] == 4
  assert result["images_synthesized"] == 64
  curve = [
    r["eval/accuracy"] for r in read_metrics(work) if "eval/accuracy" in r
  ]
  assert result["accuracy_last"] == curve[-1]
  assert result["accuracy_best"] == max(curve)
  assert result["accuracy_mean"] == pytest.approx(np.mean(curve), abs=1e-5)
  design = """method teacher_sha256 seed steps wall_seconds device accuracy_last
    accuracy_best accuracy_mean agreement teacher_accuracy images_synthesized
    images_per_second"""
  assert set(design.split()) <= set(result)
  assert sorted(p.name for p in (work / "images").iterdir()) == [
    "000002.png",
    "000004.png",
  ]

  capsys.readouterr()
  run(
    "evaluate", work / "student", "--dataset", digits, "--json", work / "e.json"
  )
  printed = capsys.readouterr().out
  figures = json.loads((work / "e.json").read_text())
  assert f"{figures['accuracy']:.2%}" in printed
  assert figures["accuracy"] == result["accuracy_last"]

  run("export", work / "student", "--out", work / "s.pth", "--format", "pth")
  assert "conv1.weight" in teachers.read_state_dict(work / "s.pth")
  run("report", work)
  assert "data:image/png;base64" in (work / "report.html").read_text()

  # Finished: the same command does no work; other settings are refused.
  before = (work / "metrics.jsonl").read_bytes()
  run(*command)
  assert (work / "metrics.jsonl").read_bytes() == before
  error = refused(capsys, 2, *command, "--bn-weight", "3.0")
  assert "source.bn_weight: 2.5 there, 3.0 now" in error


@pytest.mark.parametrize("flag", ["--memory-size", "--pool-size"])
def test_deep_inversion_through_a_replay_buffer(
  teacher, tmp_path, flag, capsys
):
  work = tmp_path / "w"
  run(
    *("distill", "deep-inversion", "--teacher", teacher, "--workdir", work),
    *("--student", "convnet-half", *SMALL, "--synthesis-steps", "3"),
    *(flag, "32", "--competition-weight", "1.0"),
  )
  renamed = "--pool-size is now --memory-size" in capsys.readouterr().err
  assert renamed == (flag == "--pool-size")
  result = json.loads((work / "result.json").read_text())
  assert result["images_synthesized"] == 32
  assert result["accuracy_last"] is None
  assert result["agreement_in_training"] is not None


def test_synthesize_writes_a_dataset_with_a_verifier(teacher, tmp_path, capsys):
  work = tmp_path / "w"
  run(
    *("synthesize", "deep-inversion", "--teacher", teacher, "--workdir", work),
    *("--num-images", "20", "--steps", "4", "--synthesis-batch-size", "8"),
    *("--verifier", teacher),
  )
  result = json.loads((work / "result.json").read_text())
  assert "verifier_accuracy_on_targets" in capsys.readouterr().out
  dataset = data.load(f"tfds:{work / 'dataset'}")
  assert dataset.images.shape == (20, 8, 8, 1)
  assert result["images_synthesized"] == 20
  same = result["teacher_accuracy_on_targets"]
  assert result["verifier_accuracy_on_targets"] == same
  assert len(list((work / "images").glob("*.png"))) == 3


def test_train_a_teacher(digits, tmp_path):
  work = tmp_path / "w"
  run(
    *("teacher", "train", "--arch", "convnet-half", "--dataset", digits),
    *("--out", work, "--eval-dataset", digits, "--steps", "50"),
    *("--batch-size", "20", "--crop-padding", "0", "--lr", "0.05"),
    *("--flip", "False"),
  )
  result = json.loads((work / "result.json").read_text())
  assert result["accuracy_last"] > 0.6
  # The workdir stands for the network that it made.
  assert teachers.digest(work) == teachers.digest(work / "network")
  _, card = teachers.load(work)
  assert card.arch == "convnet-half"


METHOD = '''
import dataclasses
from typing import NamedTuple
import jax
import jax.numpy as jnp
from dfkt_jax.contracts import Batch

class State(NamedTuple):
  level: jax.Array

class Info(NamedTuple):
  level: jax.Array

@dataclasses.dataclass(frozen=True)
class Grey:
  """Grey images."""
  rate: float = 0.1  # how fast

  def init(self, key, context):
    return State(jnp.float32(0.0))

  def step(self, key, state, context):
    level = state.level + self.rate
    return State(level), Info(level)

  def sample(self, key, state, count):
    images = jnp.full((count, 8, 8, 1), jnp.clip(state.level, 0.0, 1.0))
    return Batch(images, jnp.full(count, -1, jnp.int32))
'''


@pytest.mark.parametrize("flag", [False, True])
def test_a_method_from_a_users_file(teacher, tmp_path, flag, capsys):
  file = tmp_path / f"my_method_{flag}.py"
  file.write_text(METHOD)
  name = ["--method", f"{file}:Grey"] if flag else [f"{file}:Grey"]
  run(
    *("distill", *name, "--teacher", teacher, "--student", "convnet-half"),
    *("--workdir", tmp_path / "w", "--steps", "4", "--student-steps", "2"),
    *("--batch-size", "8", "--rate", "0.3"),
  )
  rows = read_metrics(tmp_path / "w")
  assert rows[-1]["synthesis/level"] == pytest.approx(0.6)
  file.write_text(METHOD.replace("rate", "seed"))
  assert "'seed'" in refused(capsys, 2, "distill", f"{file}:Grey")
  error = refused(capsys, 2, "distill", f"{file}:Gray")
  assert "no dataclass 'Gray'" in error
  file.write_text(METHOD.replace("def sample", "def other"))
  assert "has no sample" in refused(capsys, 2, "distill", f"{file}:Grey")
  file.write_text(METHOD.replace("def step", "def restrat"))
  assert "'restart'" in refused(capsys, 2, "distill", f"{file}:Grey")
  file.write_text(METHOD.replace("context", "teacher, student"))
  assert "CONTRIBUTING.md" in refused(capsys, 2, "distill", f"{file}:Grey")
  file.write_text(METHOD.replace("rate", "lr"))
  error = refused(capsys, 2, "distill", f"{file}:Grey")
  assert "'lr', which is a flag of learner KD too" in error
  assert "source Grey has a field" in error


LEARNER = '''
import dataclasses
import jax
from dfkt_jax.distillation.kd import KD

@dataclasses.dataclass(frozen=True)
class Half:
  """KD whose student is not trained at all."""
  kd: KD = KD(lr=0.01)
  strength: float = 0.5

  def init(self, key, student, context):
    return self.kd.init(key, student, context)

  def step(self, key, state, context):
    _, info = self.kd.step(key, state, context)
    return state, info

  def student(self, state):
    return self.kd.student(state)
'''


def test_a_learner_from_a_users_file(teacher, tmp_path, capsys):
  file = tmp_path / "my_learner.py"
  file.write_text(LEARNER)
  command = (
    *("distill", "noise", "--learner", f"{file}:Half", "--teacher", teacher),
    *("--student", "convnet-half", "--workdir", tmp_path / "w"),
    *("--steps", "4", "--student-steps", "2", "--batch-size", "8"),
    *("--strength", "0.3", "--lr", "0.02"),
  )
  run(*command)
  config = json.loads((tmp_path / "w" / "config.json").read_text())
  assert config["learner"]["name"] == "Half"
  assert config["learner"]["strength"] == 0.3
  assert config["learner"]["kd"]["lr"] == 0.02
  file.write_text(LEARNER.replace("def student", "def students"))
  assert "'student'" in refused(capsys, 2, *command)
  file.write_text(LEARNER.replace("strength", "temperature"))
  error = refused(capsys, 2, *command)
  assert "learner Half has the fields kd.temperature and temperature" in error
  assert "would both be --temperature: rename one" in error
  error = refused(capsys, 2, "distill", "dfq", "--learner", "odds")
  assert "learner 'odds' is unknown; did you mean odsd?" in error


def test_the_learner_of_a_paper_has_its_settings(tmp_path, monkeypatch):
  from dfkt_jax.cli import experiments

  filled = []
  keep = lambda experiment, options: filled.append(experiment)
  monkeypatch.setattr(experiments, "run_and_show", keep)
  rest = ("--teacher", "t", "--student", "s", "--workdir", tmp_path)
  pool = ("--pool", "folder:p")
  run("distill", "dfnd", *rest, *pool, "--noise-weight", "0.5")
  run("distill", "dfnd", "--learner", "dfnd", *rest, *pool)
  run("distill", "dfnd", "--learner=kd", *rest, *pool)
  run("distill", "noise", "--learner=odsd", *rest, "--denoise", "0.25")
  own, named, plain, other = (experiment.learner for experiment in filled)
  assert own == dataclasses.replace(DFND.learner, noise_weight=0.5)
  assert named == DFND.learner
  assert plain == KD()
  assert other == ContrastiveRelations(denoise=0.25)
  assert filled[0].recipe == DFND.recipe
  assert filled[3].source == Noise()


def test_any_learner_goes_with_any_source(tmp_path, monkeypatch):
  from dfkt_jax.cli import experiments

  seen = []
  keep = lambda command, kind, default, args, choice: seen.append(default)
  monkeypatch.setattr(experiments, "_carry_out", keep)
  for source in methods.SOURCES:
    for learner in methods.LEARNERS:
      run("distill", source, "--learner", learner)
  assert len(seen) == len(methods.SOURCES) * len(methods.LEARNERS)


NAMED = """
from pathlib import Path
from dfkt_jax.commands.distill import Distill
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.synthesis.noise import Noise

recipe = Recipe(steps=2, batch_size=8, student_steps=2)
noise = Distill(Noise(), KD(), recipe, Path("{teacher}"), "convnet-half")
"""


def test_run_named_experiments(teacher, tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(NAMED.format(teacher=teacher))
  run("run", file, "--list")
  assert "noise" in capsys.readouterr().out
  run("run", f"{file}:noise", "--workdir", tmp_path / "w")
  assert (tmp_path / "w" / "result.json").exists()
  words = ("run", f"{file}:noise", "--workdir", tmp_path / "s")
  run(*words, "--seed", "3", "--set", "recipe.steps=4", "evaluations=1")
  result = json.loads((tmp_path / "s" / "result.json").read_text())
  assert (result["seed"], result["steps"]) == (3, 4)
  again = ("run", f"{file}:noise", "--workdir", tmp_path / "often")
  run(*again, "--set", "seed=5", "evaluations=1", "--set=recipe.steps=6")
  result = json.loads((tmp_path / "often" / "result.json").read_text())
  assert (result["seed"], result["steps"]) == (5, 6)
  error = refused(capsys, 2, *words, "--set", "lrr=3")
  assert "did you mean learner.lr?" in error
  error = refused(capsys, 2, *words, "--lrr", "3")
  assert "--lrr: the experiment has no such field; did you mean" in error
  error = refused(capsys, 2, *words, "--lr", "fast")
  assert "--lr fast: expected a number, such as 0.1" in error


def test_settings_of_a_named_experiment_as_flags(teacher, tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(NAMED.format(teacher=teacher))
  words = ("run", f"{file}:noise", "--mesh", "data=1", "--workdir")
  flags = ("--steps", "4", "--learner.lr=0.02", "--batch-size", "4", "--seed")
  run(*words, tmp_path / "flags", *flags, "3")
  old = ("transfer.kd.steps=4", "transfer.kd.lr=0.02", "transfer.batch_size=4")
  capsys.readouterr()
  run(*words, tmp_path / "old", "--set", *old, "seed=3")
  said = capsys.readouterr().err
  assert "dfkt: --set transfer.kd.lr is now learner.lr\n" in said
  assert "dfkt: --set transfer.kd.steps is now recipe.steps\n" in said
  config = lambda name: json.loads(
    (tmp_path / name / "config.json").read_text()
  )
  assert config("flags") == config("old")
  assert config("flags")["learner"]["lr"] == 0.02
  assert config("flags")["recipe"]["batch_size"] == 4
  assert config("flags")["seed"] == 3
  with pytest.raises(SystemExit) as stop:
    run("run", f"{file}:noise", "--help")
  assert stop.value.code == 0
  text = capsys.readouterr().out
  assert "recipe.steps = 2" in text
  assert "--checkpoint-seconds" in text


def test_an_experiments_file_of_version_0_1(tmp_path, capsys):
  file = tmp_path / "old.py"
  file.write_text("from dfkt_jax.distillation.transfer import Transfer")
  error = refused(capsys, 2, "run", file, "--workdir", tmp_path / "w")
  assert "Transfer of version 0.1 is now dfkt_jax.distillation.recipe" in error
  file.write_text("import dfkt_jax.distillation.transfer")
  error = refused(capsys, 2, "run", file, "--workdir", tmp_path / "w")
  assert "import from dfkt_jax.distillation.recipe instead" in error
  file.write_text(
    "from dfkt_jax.commands.distill import Distill\n"
    "from dfkt_jax.synthesis.dfq import DFQ\n"
    "dfq = Distill(method=DFQ(), transfer=None, teacher='t', student='s')\n"
  )
  error = refused(capsys, 2, "run", file, "--workdir", tmp_path / "w")
  assert "Distill now takes source=, learner= and recipe=" in error


def test_an_experiment_that_is_not_there(teacher, tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(NAMED.format(teacher=teacher))
  error = refused(capsys, 2, "run", f"{file}:loud", "--workdir", tmp_path / "v")
  assert "expected one of noise" in error


def test_list_everything(capsys):
  for what in ("methods", "archs", "presets", "datasets", "experiments"):
    run("list", what)
  text = capsys.readouterr().out
  for name in ("deep-inversion", "wrn-40-2", "akamaster-cifar10", "npz:FILE"):
    assert name in text
  assert "KD: the student imitates the teacher's predictions." in text
  assert "Chen et al., Learning Student Networks in the Wild, CVPR 2021" in text


def test_cifar_teachers_have_their_published_accuracy(tmp_path, capsys):
  file = shared_data("resnet20-12fca82f.th")
  photos = f"npz:{shared_data('cifar10_test1000.npz')}"
  out = tmp_path / "t20"
  run(
    *("teacher", "import", file, "--arch", "resnet20"),
    *("--preset", "akamaster-cifar10", "--out", out),
  )
  run("evaluate", out, "--dataset", photos)
  assert re.search(r"accuracy +91\.50%", capsys.readouterr().out)


def test_usps_network_by_its_arch_alone(tmp_path, capsys):
  file = package_file("ccexam", "weights/usps.pth")
  digits = f"npz:{shared_data('usps.npz')}/test"
  out = tmp_path / "usps"
  run("teacher", "import", file, "--arch", "ccexam-usps", "--out", out)
  run("evaluate", out, "--dataset", digits)
  assert re.search(r"accuracy +97\.16%", capsys.readouterr().out)


class _Evil:
  def __reduce__(self):
    import os

    return os.system, ("touch /tmp/dfkt-was-here",)


def test_refusals_of_files(teacher, tmp_path, capsys):
  out = tmp_path / "out"
  take = lambda file, arch="convnet-half", *rest: refused(
    *(capsys, 2, "teacher", "import", file, "--arch", arch, "--out", out),
    *rest,
  )
  evil = tmp_path / "evil.pth"
  evil.write_bytes(pickle.dumps({"state_dict": _Evil()}))
  error = take(evil, "resnet20", "--preset", "akamaster-cifar10")
  assert "evil.pth" in error
  assert "system" in error
  assert not Path("/tmp/dfkt-was-here").exists()

  pth = tmp_path / "s.pth"
  run("export", teacher, "--out", pth, "--format", "pth")
  short = tmp_path / "short.pth"
  short.write_bytes(pth.read_bytes()[:1000])
  error = take(short, "resnet20", "--preset", "akamaster-cifar10")
  assert "short.pth" in error
  assert "none.pth" in take(tmp_path / "none.pth", "ccexam-usps")
  assert not out.exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, capsys):
  file = shared_data("resnet20-12fca82f.th")
  with pytest.raises(SystemExit) as stop:
    run(
      *("teacher", "import", file, "--arch", "resnet56"),
      *("--preset", "akamaster-cifar10", "--out", tmp_path / "o"),
    )
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert "resnet20" in error
  assert "layer3.8.conv2.weight" in error
  assert not (tmp_path / "o").exists()


def test_refusals_of_words(teacher, tmp_path, capsys):
  no = lambda *args: refused(capsys, 2, *args)
  distill = (
    *("distill", "dfq", "--teacher", teacher, "--workdir", tmp_path / "w"),
  )
  assert "did you mean 'distill'" in no("distil")
  assert "did you mean dfq" in no("distill", "dfqs")
  assert "needs a source first" in no("distill")
  assert "source 'dfqs' is unknown" in no("distill", "dfqs")
  assert "method 'dfqs' is unknown" in no("synthesize", "dfqs")
  assert "needs a method first" in no("adapt")
  twice = ("--learner", "kd", "--learner=dfnd")
  assert "--learner is given 2 times" in no("distill", "dfq", *twice)
  assert "'resnet-21' is unknown" in no(*distill, "--student", "resnet-21")
  assert "--steps is 0" in no(
    *distill, "--student", "convnet-half", "--steps", "0"
  )
  assert "--memory-size is 8 and a round makes 256" in no(
    *(*distill, "--student", "convnet-half", "--memory-size", "8")
  )
  assert "cifar11" in no(
    *(*distill, "--student", "convnet-half", "--eval-dataset", "cifar11")
  )
  assert "'dfkt teacher import'" in no(
    *("evaluate", tmp_path / "nothing", "--dataset", "digits")
  )
  assert not (tmp_path / "w").exists()
  file = tmp_path / "file"
  file.write_text("")
  error = no(*distill[:-1], file / "w", "--student", "convnet-half", *SMALL)
  assert "file" in error
  error = no(
    *("synthesize", "dfq", "--teacher", teacher, "--workdir", tmp_path / "v"),
  )
  assert "--student" in error


@pytest.mark.parametrize(
  ("flag", "value", "part"),
  [
    ("--lr", "nan", "--lr is nan: give a finite number"),
    ("--crop-padding", "-1", "--crop-padding is -1: give 0 or more"),
    ("--temperature", "0", "--temperature is 0: give a number above 0"),
    ("--seed", "99999999999999999999", "--seed is 99999999999999999999"),
    ("--synthesis-batch-size", "0", "--synthesis-batch-size is 0"),
    ("--latent", "0", "--latent is 0: give a number above 0"),
    ("--generator-widths", "-4", "--generator-widths is -4: give a number"),
    ("--shrink", "1.5", "--shrink is 1.5: it is a share, give 0 to 1"),
  ],
)
def test_numbers_that_cannot_be(teacher, tmp_path, capsys, flag, value, part):
  error = refused(
    *(capsys, 2, "distill", "dfq", "--teacher", teacher, "--student"),
    *("convnet-half", "--workdir", tmp_path / "w", *SMALL, *GENERATOR),
    *(flag, value),
  )
  assert part in error
  assert not (tmp_path / "w").exists()


def test_soft_labels_are_drawn_at_least_once(teacher, tmp_path, capsys):
  error = refused(
    *(capsys, 2, "distill", "soft-target", "--teacher", teacher, "--student"),
    *("convnet-half", "--workdir", tmp_path / "w", "--draws", "0"),
  )
  assert "--draws is 0: give a number above 0" in error
  assert not (tmp_path / "w").exists()


def test_weights_that_overflow_are_never_a_result(teacher, tmp_path, capsys):
  # One step: the loss before it is finite, the weights after it are not.
  error = refused(
    *(capsys, 1, "distill", "noise", "--teacher", teacher, "--student"),
    *("convnet-half", "--workdir", tmp_path / "w", "--steps", "1"),
    *("--student-steps", "1", "--batch-size", "8", "--lr", "1e38"),
    *("--hard-label-weight", "1e6"),
  )
  assert "not finite after step 1" in error
  assert not (tmp_path / "w" / "result.json").exists()
  assert not (tmp_path / "w" / "student").exists()


def test_a_method_whose_only_term_is_its_loss_is_stopped_too(
  teacher, tmp_path, capsys
):
  file = tmp_path / "broken.py"
  info = "class Info(NamedTuple):\n  "
  code = METHOD.replace(f"{info}level", f"{info}loss")
  file.write_text(code.replace("Info(level)", "Info(level * jnp.nan)"))
  error = refused(
    *(capsys, 1, "distill", f"--method={file}:Grey", "--teacher", teacher),
    *("--student", "convnet-half", "--workdir", tmp_path / "w", "--steps", "4"),
    *("--student-steps", "2", "--batch-size", "8"),
  )
  assert "synthesis/loss was the first" in error


def test_a_method_that_changed_is_another_method(teacher, tmp_path, capsys):
  file = tmp_path / "json.py"  # whose name must not replace the real json
  file.write_text(METHOD)
  command = (
    *("distill", f"{file}:Grey", "--teacher", teacher, "--student"),
    *("convnet-half", "--workdir", tmp_path / "w", "--steps", "2"),
    *("--student-steps", "2", "--batch-size", "8"),
  )
  run(*command)
  file.write_text(METHOD + "# changed")
  assert "source.code_sha256" in refused(capsys, 2, *command)


def test_no_images_of_a_generator_that_has_not_learnt(
  teacher, tmp_path, capsys
):
  error = refused(
    *(capsys, 2, "synthesize", "dfq", "--teacher", teacher),
    *("--student", teacher, "--workdir", tmp_path / "w"),
  )
  assert "--steps 1000" in error


def test_a_fault_of_ours_is_one_sentence_too(monkeypatch, capsys):
  def broken(args):
    raise RuntimeError("boom")

  monkeypatch.setitem(dispatch._COMMANDS, "list", broken)
  error = refused(capsys, 1, "list", "archs")
  assert f"unexpected RuntimeError at {__file__}:" in error
  assert ": boom; this is a fault of dfkt or of a method of your own" in error
  with pytest.raises(RuntimeError):
    run("list", "archs", "--debug")


def test_commands_of_one_process_refuse_to_be_one_of_several(
  capsys, monkeypatch
):
  monkeypatch.setenv("DFKT_PROCESSES", "2")
  error = refused(capsys, 2, "evaluate", "t", "--dataset", "digits/test")
  assert "dfkt evaluate runs in one process, and DFKT_PROCESSES is 2" in error
