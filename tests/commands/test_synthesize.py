"""Batches that do not depend on each other, made by processes that never meet.

Here each of them is played in turn by this one.
"""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax.cli import dispatch
from dfkt_jax.commands import independent_batches
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.contracts import Context
from dfkt_jax.data.examples import open_examples
from dfkt_jax.rounds.distil import INIT, stream_key
from dfkt_jax.runs import workdir
from dfkt_jax.runs.metrics import read_metrics
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.noise import Noise
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.zskd import ZSKD
from tests.networks import save_tiny, spec

TIMES = ("wall_seconds", "images_per_second", "dataset")
BATCHES = ("--num-images", "20", "--steps", "4", "--synthesis-batch-size", "8")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp("teacher") / "t"
  save_tiny(place)
  return place


def words(teacher: Path, work: Path, *flags: str) -> list[str]:
  return [
    *("synthesize", "deep-inversion", "--teacher", str(teacher)),
    *("--verifier", str(teacher), "--workdir", str(work), *BATCHES, *flags),
    *("--mesh", "data=1"),
  ]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
  """The workdir of a run of one process."""
  work = tmp_path_factory.mktemp("whole") / "w"
  dispatch.main(words(teacher, work))
  return work


@pytest.fixture
def as_process(monkeypatch):
  """Runs words as process `index` of `count` would."""

  def run(index, count, words):
    monkeypatch.setenv("DFKT_PROCESS", str(index))
    monkeypatch.setenv("DFKT_PROCESSES", str(count))
    # Nobody listens there, and nobody has to.
    monkeypatch.setenv("DFKT_COORDINATOR", "127.0.0.1:1")
    dispatch.main(words)

  return run


def outcome(work: Path):
  result = json.loads((work / "result.json").read_text())
  rows = [
    {k: v for k, v in row.items() if k != "wall"} for row in read_metrics(work)
  ]
  dataset = data.load(f"tfds:{work / 'dataset'}")
  figures = {k: v for k, v in result.items() if k not in TIMES}
  return figures, rows, dataset.images.tobytes(), dataset.labels.tolist()


def made(work: Path) -> set[int]:
  """The numbers of the shards that are there."""
  paths = (work / "dataset").glob("*.array_record-*")
  return {int(path.name.split("-")[2]) for path in paths}


def test_what_is_made_does_not_depend_on_who_makes_it(
  teacher, whole, tmp_path, as_process, capsys
):
  work = tmp_path / "w"
  as_process(1, 2, words(teacher, work))
  assert "2 of 3 shards are not there yet" in capsys.readouterr().out
  assert made(work) == {1}
  assert not (work / "result.json").exists()
  assert not (work / "dataset" / "dataset_info.json").exists()
  # Whatever is there is reported.
  assert [row["images"] for row in read_metrics(work)] == [16]
  # Another number of processes, of which one finds its batch already made.
  as_process(1, 3, words(teacher, work))
  assert made(work) == {1}
  as_process(2, 3, words(teacher, work))
  assert made(work) == {1, 2}
  as_process(0, 3, words(teacher, work))
  assert made(work) == {0, 1, 2}
  assert outcome(work) == outcome(whole)
  walls = [row["wall"] for row in read_metrics(work)]
  assert walls == sorted(walls)
  as_process(0, 1, ["report", str(work)])
  assert "verify/teacher" in (work / "report.html").read_text()


def test_every_image_is_there_once(whole):
  dataset = data.load(f"tfds:{whole / 'dataset'}")
  assert len({image.tobytes() for image in dataset.images}) == 20
  result = json.loads((whole / "result.json").read_text())
  accuracy = result["verifier_accuracy_on_targets"]
  assert accuracy == result["teacher_accuracy_on_targets"]


def test_lines_of_an_attempt_that_saved_nothing_are_dropped(
  teacher, whole, tmp_path
):
  work = tmp_path / "w"
  left = work / "shards" / "00001"
  left.mkdir(parents=True)
  (left / "metrics.jsonl").write_text('{"step": 5, "wall": 1.0}\n')
  config = (whole / "config.json").read_bytes()
  (work / "config.json").write_bytes(config)
  dispatch.main(words(teacher, work))
  assert outcome(work) == outcome(whole)


def test_the_pace_leaves_out_where_a_batch_was_taken_up_again():
  plan = SimpleNamespace(chunk=2)
  walls = [5.0, 6.0, 7.0, 40.0, 41.0]  # a start, and a resumption
  log = [{"step": 2 * i, "wall": wall} for i, wall in enumerate(walls)]
  pace = independent_batches._throughput(plan, [log, log])
  assert pace.rounds_per_second == pytest.approx(1.0)
  assert pace.wall_seconds == 82.0


def test_independent_batches_do_not_shard_parameters(teacher, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    dispatch.main([*words(teacher, tmp_path / "w")[:-1], "data=2,model=2"])
  assert stop.value.code == 2
  assert "do not shard parameters" in capsys.readouterr().err


def test_a_verifier_may_take_images_of_another_size(teacher, tmp_path, capsys):
  save_tiny(tmp_path / "larger", spec(12))
  save_tiny(tmp_path / "fewer", spec(classes=5))
  words = [
    *("synthesize", "deep-inversion", "--teacher", str(teacher)),
    *("--num-images", "8", "--synthesis-batch-size", "8", "--steps", "1"),
    *("--workdir", str(tmp_path / "w"), "--verifier"),
  ]
  with pytest.raises(SystemExit) as stop:
    dispatch.main([*words, str(tmp_path / "fewer")])
  assert stop.value.code == 2
  assert "has 5 classes and the teacher 10" in capsys.readouterr().err
  dispatch.main([*words, str(tmp_path / "larger")])
  result = json.loads((tmp_path / "w" / "result.json").read_text())
  assert 0 <= result["verifier_accuracy_on_targets"] <= 1


def test_a_shard_that_is_lost_or_cut_short_is_made_anew(
  teacher, whole, tmp_path, as_process, capsys
):
  work = tmp_path / "w"
  as_process(0, 2, words(teacher, work))
  path = next((work / "dataset").glob("*-00002-of-*"))
  path.unlink()
  # As a writer that was killed leaves it.
  leftover = path.with_name(f".{path.name}.123.tmp")
  leftover.write_bytes(b"half")
  shard = next((work / "dataset").glob("*-00000-of-*"))
  shard.write_bytes(shard.read_bytes()[: 2**15])
  with pytest.raises(SystemExit) as stop:
    as_process(0, 1, words(teacher, work))
  assert stop.value.code == 1
  assert "00000-of-00003 holds 0 images: expected 8" in capsys.readouterr().err
  assert not leftover.exists()
  shard.unlink()
  as_process(0, 1, words(teacher, work))
  assert outcome(work) == outcome(whole)


def test_a_batch_in_the_hands_of_another_process_is_left_to_it(
  teacher, tmp_path, as_process, capsys
):
  work = tmp_path / "w"
  with workdir.lock(work / ".lock"):
    pass  # makes the folder
  with workdir.lock(work / "shards" / "00001" / ".lock") as free:
    assert free
    (work / "config.json").write_text("{}")
    as_process(0, 1, words(teacher, work))
  assert made(work) == {0, 2}
  assert "1 of 3 shards are not there yet" in capsys.readouterr().out


def test_processes_of_other_settings_are_refused(
  teacher, whole, as_process, capsys
):
  with pytest.raises(SystemExit) as stop:
    as_process(1, 2, words(teacher, whole, "--seed", "1"))
  assert stop.value.code == 2
  assert "seed: 0 there, 1 now" in capsys.readouterr().err


def test_a_stop_that_comes_as_a_batch_is_finished(
  teacher, whole, tmp_path, monkeypatch, capsys
):
  work = tmp_path / "w"

  @contextlib.contextmanager
  def told_with_the_first_batch(alone):
    assert alone
    yield lambda rounds: bool(made(work))

  with monkeypatch.context() as patch:
    patch.setattr(
      independent_batches, "stop_signals", told_with_the_first_batch
    )
    with pytest.raises(SystemExit) as stop:
      dispatch.main(words(teacher, work))
  assert stop.value.code == 75
  assert "stopped before batch 2 of 3" in capsys.readouterr().err
  assert made(work) == {0}
  dispatch.main(words(teacher, work))
  assert outcome(work) == outcome(whole)


def test_which_methods_make_independent_batches():
  teacher = Path("t")
  for method in (DeepInversion(), SoftTarget(), ZSKD()):
    assert Synthesize(method, teacher).independent
  for method in (DFQ(), Noise()):
    assert not Synthesize(method, teacher).independent

  class Keeping(DeepInversion):
    def restart(self, key, state, context):
      return state

  assert not Synthesize(Keeping(), teacher).independent


def test_soft_labels_are_kept_with_the_images(teacher, tmp_path):
  work = tmp_path / "w"
  dispatch.main(
    [
      *("synthesize", "soft-target", "--teacher", str(teacher), "--workdir"),
      *(str(work), "--num-images", "12", "--steps", "2"),
      *("--synthesis-batch-size", "8", "--mesh", "data=1"),
    ]
  )
  examples = open_examples(f"tfds:{work / 'dataset'}")
  assert examples is not None
  assert (len(examples), examples.soft_classes) == (12, 10)
  held = [examples.example(index) for index in range(12)]
  soft_labels = np.stack([example["soft_labels"] for example in held])
  assert soft_labels.argmax(1).tolist() == [e["label"] for e in held]
  method = SoftTarget(synthesis_batch_size=8)
  network, _ = teachers.load(teacher)
  key = stream_key(jax.random.key(0), INIT, 0)
  state = jax.jit(method.init)(key, Context(teacher=network))
  np.testing.assert_allclose(
    soft_labels[:8], state.soft_labels, rtol=1e-4, atol=1e-4
  )


PLAIN = """
import dataclasses
import jax.numpy as jnp
from typing import NamedTuple
from dfkt_jax.contracts import Batch

class Info(NamedTuple):
  step: object

@dataclasses.dataclass(frozen=True)
class Plain:
  def prepare(self, rng, context):
    return {"level": rng.uniform(size=(1,)).astype("float32")}

  def init(self, key, context):
    return context.assets["level"]

  def step(self, key, state, context):
    return state, Info(context.progress)

  def sample(self, key, state, count):
    return Batch(jnp.full((count, 8, 8, 1), state[0]))
"""


def test_a_method_may_leave_labels_out_and_prepare_assets(teacher, tmp_path):
  file, work = tmp_path / "plain.py", tmp_path / "w"
  file.write_text(PLAIN)
  dispatch.main(
    [
      *("synthesize", f"{file}:Plain", "--teacher", str(teacher)),
      *("--num-images", "8", "--steps", "4", "--workdir", str(work)),
      *("--mesh", "data=1"),
    ]
  )
  assert (work / "assets.npz").exists()
  found = data.load(f"tfds:{work / 'dataset'}")
  assert len(np.unique(found.images)) == 1
  (row,) = read_metrics(work)
  assert row["synthesis/step"] == pytest.approx(0.375)  # of 0, 1/4, 1/2, 3/4


STAGED = '''
"""Brightens, then darkens, in steps of its own size."""
import dataclasses
from typing import ClassVar, NamedTuple
import jax
import jax.numpy as jnp
from dfkt_jax.contracts import Batch
from dfkt_jax.distillation.recipe import Recipe

class State(NamedTuple):
  level: jax.Array

class Info(NamedTuple):
  level: jax.Array

@dataclasses.dataclass(frozen=True)
class Staged:
  rate: float = 0.1
  synthesis_batch_size: int = 4
  recipe: ClassVar[Recipe] = Recipe(memory_size=8, synthesis_steps=6)

  def stages(self, steps):
    half = steps // 3
    slow = dataclasses.replace(self, rate=0.01)
    return [(self.step, half), (slow.step, steps - half)]

  def init(self, key, context):
    return State(jnp.float32(0.0))

  def step(self, key, state, context):
    level = state.level + self.rate
    return State(level), Info(level)

  def sample(self, key, state, count):
    images = jnp.full((count, 8, 8, 1), state.level)
    return Batch(images, jnp.full(count, -1, jnp.int32))
'''


def test_a_batch_may_be_made_in_stages(teacher, tmp_path):
  file, work = tmp_path / "staged.py", tmp_path / "w"
  file.write_text(STAGED)
  dispatch.main(
    [
      *("synthesize", f"{file}:Staged", "--teacher", str(teacher)),
      *("--num-images", "8", "--workdir", str(work)),
    ]
  )
  # Two steps of 0.1, then four of 0.01, of which two make a line.
  levels = [row["synthesis/level"] for row in read_metrics(work)]
  assert levels[-1] == pytest.approx((0.23 + 0.24) / 2)
  images = data.load(f"tfds:{work / 'dataset'}").images
  assert images.shape == (8, 8, 8, 1)
  assert set(images.flat) == {round(0.24 * 255)}
