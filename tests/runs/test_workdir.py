import dataclasses
import json
from pathlib import Path

import pytest

from dfkt_jax.errors import UsageError
from dfkt_jax.runs import workdir


@dataclasses.dataclass(frozen=True)
class Inner:
  lr: float = 0.1


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  teacher: Path = Path("t20")
  widths: tuple[int, ...] = (1, 2)


def test_settings_are_nested_and_named():
  assert workdir.settings(Outer()) == {
    "name": "Outer",
    "inner": {"name": "Inner", "lr": 0.1},
    "teacher": "t20",
    "widths": [1, 2],
  }


def test_the_same_settings_claim_a_folder_again(tmp_path):
  place = tmp_path / "w"
  config = workdir.settings(Outer())
  for _ in range(2):
    with workdir.claim(place, config):
      pass
  assert json.loads((place / "config.json").read_text()) == config


def test_other_settings_are_refused_with_the_difference(tmp_path):
  with workdir.claim(tmp_path / "w", workdir.settings(Outer())):
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
  other = workdir.settings(Outer(inner=Inner(lr=0.05)))
  with (
    pytest.raises(UsageError, match=r"inner.lr: 0.1 there, 0.05 now"),
    workdir.claim(tmp_path / "w", other),
  ):
    pass


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with (
    pytest.raises(UsageError, match="holds no config.json"),
    workdir.claim(tmp_path, {}),
  ):
    pass
  assert (tmp_path / "thesis.tex").read_text() == "precious"
  assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_use_is_refused(tmp_path):
  place = tmp_path / "w"
  with (
    workdir.claim(place, {}),
    pytest.raises(UsageError, match="in use by another"),
    workdir.claim(place, {}),
  ):
    pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  with (
    pytest.raises(UsageError, match="file"),
    workdir.claim(file / "w", {}),
  ):
    pass


def test_finished_is_the_result_or_none(tmp_path):
  assert workdir.finished(tmp_path) is None
  (tmp_path / "result.json").write_text('{"accuracy_last": 1}')
  assert workdir.finished(tmp_path) == {"accuracy_last": 1}


def test_settings_that_saved_nothing_give_way_to_corrected_ones(tmp_path):
  for inner in (Inner(lr=-1.0), Inner(lr=0.1)):
    with workdir.claim(tmp_path / "w", workdir.settings(Outer(inner=inner))):
      pass
  config = json.loads((tmp_path / "w" / "config.json").read_text())
  assert config["inner"]["lr"] == 0.1


def test_a_second_run_changes_nothing_while_the_first_is_running(tmp_path):
  place = tmp_path / "w"
  with workdir.claim(place, {"seed": 0}):
    # The first has saved nothing yet.
    with (
      pytest.raises(UsageError, match="in use by another"),
      workdir.claim(place, {"seed": 1}),
    ):
      pass
    assert json.loads((place / "config.json").read_text()) == {"seed": 0}


def test_a_workdir_of_version_0_1_is_refused(tmp_path):
  place = tmp_path / "w"
  with workdir.claim(place, {"command": "distill", "transfer": {"lr": 1}}):
    (place / "checkpoints" / "5").mkdir(parents=True)
  config = {"version": workdir.VERSION, "command": "distill"}
  with (
    pytest.raises(UsageError, match=r"written by dfkt 0\.1, .* --workdir"),
    workdir.claim(place, config),
  ):
    pass


@pytest.mark.parametrize("name", ["teacher", "source", "selection"])
def test_an_input_may_move(tmp_path, name):
  config = {name: "t20", f"{name}_sha256": "ab"}
  with workdir.claim(tmp_path / "w", config):
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
  with workdir.claim(tmp_path / "w", {**config, name: "/data/t20"}):
    pass


def test_a_teacher_may_move(tmp_path):
  config = {"teacher": "t20", "teacher_sha256": "ab"}
  with workdir.claim(tmp_path / "w", config):
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
  with workdir.claim(tmp_path / "w", {**config, "teacher": "/data/t20"}):
    pass
  with (
    pytest.raises(UsageError, match="teacher_sha256: ab there, cd now"),
    workdir.claim(tmp_path / "w", {**config, "teacher_sha256": "cd"}),
  ):
    pass


def test_a_run_that_refuses_its_input_leaves_nothing(tmp_path):
  def refuse(place):
    with workdir.claim(place, {"lr": 0.1}):
      raise UsageError("no such class")

  with pytest.raises(UsageError, match="no such class"):
    refuse(tmp_path / "w")
  assert not (tmp_path / "w").exists()
  with workdir.claim(tmp_path / "w", {"lr": 0.1}):
    pass
  with pytest.raises(UsageError, match="no such class"):
    refuse(tmp_path / "w")
  assert (tmp_path / "w" / "config.json").exists()


def test_a_run_that_wrote_pictures_and_then_refused_can_be_corrected(tmp_path):
  place = tmp_path / "w"

  def refuse():
    with workdir.claim(place, {"target": "stored"}):
      (place / "images").mkdir()
      raise UsageError("no soft labels")

  with pytest.raises(UsageError, match="no soft labels"):
    refuse()
  with workdir.claim(place, {"target": "teacher"}):
    pass
  config = json.loads((place / "config.json").read_text())
  assert config == {"target": "teacher"}


def test_a_folder_that_was_there_stays(tmp_path):
  with (
    pytest.raises(UsageError, match="no such class"),
    workdir.claim(tmp_path, {"lr": 0.1}),
  ):
    raise UsageError("no such class")
  assert not list(tmp_path.iterdir())


def test_processes_share_a_folder_each_by_its_own_number(tmp_path):
  place, config = tmp_path / "w", {"lr": 0.1}
  with workdir.share(place, config, 0), workdir.share(place, config, 1):
    with (
      pytest.raises(UsageError, match="process of number 1"),
      workdir.share(place, config, 1),
    ):
      pass
    # Nothing is saved yet, but somebody is at work.
    with (
      pytest.raises(UsageError, match=r"lr: 0.1 there, 0.2 now"),
      workdir.share(place, {"lr": 0.2}, 2),
    ):
      pass
    with (
      pytest.raises(UsageError, match="in use by another"),
      workdir.claim(place, config),
    ):
      pass
  with workdir.share(place, {"lr": 0.2}, 1):
    assert json.loads((place / "config.json").read_text()) == {"lr": 0.2}


def test_a_folder_that_one_run_has_is_not_shared(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir, "LOCK_SECONDS", 0.1)
  with (
    workdir.claim(tmp_path / "w", {}),
    pytest.raises(UsageError, match="in use by another"),
    workdir.share(tmp_path / "w", {}, 0),
  ):
    pass


def test_a_folder_of_something_else_is_not_shared(tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with (
    pytest.raises(UsageError, match="holds no config.json"),
    workdir.share(tmp_path, {}, 0),
  ):
    pass


@pytest.mark.parametrize(
  "saved",
  ["shards/00003/checkpoints/7.npz", "dataset/d-train.array_record-0-of-1"],
)
def test_what_a_shared_run_saved_is_kept(tmp_path, saved):
  place = tmp_path / "w"
  with workdir.share(place, {"lr": 0.1}, 0):
    (place / saved).parent.mkdir(parents=True)
    (place / saved).touch()
  with (
    pytest.raises(UsageError, match=r"lr: 0.1 there, 0.2 now"),
    workdir.share(place, {"lr": 0.2}, 0),
  ):
    pass


def test_settings_that_saved_nothing_leave_no_assets_to_others(tmp_path):
  place = tmp_path / "w"
  for seed in range(2):
    with workdir.claim(place, {"seed": seed}):
      assert not (place / "assets.npz").exists()
      (place / "assets.npz").write_bytes(b"prepared")
  (place / "checkpoints" / "1").mkdir(parents=True)
  with workdir.claim(place, {"seed": 1}):
    assert (place / "assets.npz").exists()
