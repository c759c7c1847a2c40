"""`dfkt distill` with a pool, as a user types it."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax import network as net
from dfkt_jax.cli import dispatch
from dfkt_jax.contracts import Selection
from dfkt_jax.data.pool import open_pool
from dfkt_jax.devices.mesh import make_mesh
from dfkt_jax.evaluation import pool_scores
from dfkt_jax.openworld.dfnd import DFND
from tests.networks import save_tiny

SMALL = ["--steps", "4", "--student-steps", "2", "--batch-size", "8"]
GENERATOR = [
  *("--latent", "4", "--generator-widths", "4", "4", "4"),
  *("--discriminator-widths", "4", "8"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  place = tmp_path_factory.mktemp("inputs")
  save_tiny(place / "t")
  digits = data.load("digits/test")
  np.savez(place / "d", images=digits.images[:40], labels=digits.labels[:40])
  np.savez(place / "pool", images=digits.images[40:140])
  return place


def distill(inputs, method, workdir, *flags):
  words = [
    *("distill", method, "--teacher", inputs / "t", "--student"),
    *("convnet-half", "--pool", f"npz:{inputs / 'pool.npz'}", *SMALL),
    *("--num-images", "30", "--pool-cache", inputs / "cache"),
    *("--eval-dataset", f"npz:{inputs / 'd.npz'}", "--workdir", workdir),
    *("--mesh", "data=1", *flags),
  ]
  dispatch.main([str(word) for word in words])
  return json.loads((workdir / "result.json").read_text())


def selected(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["random", "dfnd", "odsd", "mosaic-kd"])
def test_every_method_selects_and_learns(inputs, tmp_path, method):
  flags = GENERATOR if method == "mosaic-kd" else []
  result = distill(inputs, method, tmp_path / "w", *flags)
  assert result["images_selected"] == 30
  assert result["pool_images"] == 100
  made = 4 * 8 if method == "mosaic-kd" else 0
  assert result["images_synthesized"] == made
  assert 0.0 <= result["accuracy_last"] <= 1.0
  rows = selected(tmp_path / "w" / "selection.csv")
  assert len({row["index"] for row in rows}) == 30
  assert rows[0]["name"] == f"{int(rows[0]['index']):08d}"
  for name in ("chosen", "rejected"):
    assert (tmp_path / "w" / "images" / f"{name}.png").exists()
  assert (tmp_path / "w" / "student").is_dir()


def test_a_selection_can_be_thinned_out_and_reused(inputs, tmp_path):
  distill(inputs, "dfnd", tmp_path / "one")
  lines = (tmp_path / "one" / "selection.csv").read_text().splitlines()
  few = tmp_path / "few.csv"
  few.write_text("\n".join(lines[:13]))
  result = distill(inputs, "random", tmp_path / "two", "--selection", few)
  assert result["images_selected"] == 12
  rows = selected(tmp_path / "two" / "selection.csv")
  assert [row["index"] for row in rows] == [
    line.split(",")[0] for line in lines[1:13]
  ]


def test_the_teacher_looks_at_a_pool_once(inputs, tmp_path, monkeypatch):
  distill(inputs, "random", tmp_path / "one")
  looks = []
  score = pool_scores._score_images
  monkeypatch.setattr(
    pool_scores, "_score_images", lambda *args: looks.append(1) or score(*args)
  )
  distill(inputs, "dfnd", tmp_path / "two")
  assert not looks


def look(inputs, pool, card=None):
  teacher, own = teachers.load(inputs / "t")
  mesh = make_mesh(8)
  return pool_scores.score_pool(pool, teacher, card or own, mesh), teacher


def test_scores_are_the_teachers(inputs, tmp_path):
  pool = open_pool(f"npz:{inputs / 'pool.npz'}", (8, 8, 1), tmp_path)
  scores, teacher = look(inputs, pool)
  images = pool.images[:].astype(np.float32) / 255
  logits, taps = net.features(teacher, images)
  p = np.asarray(jax.nn.softmax(logits))
  np.testing.assert_array_equal(scores.decision, p.argmax(1))
  np.testing.assert_allclose(scores.confidence, p.max(1), rtol=1e-4)
  entropy = -(p * np.log(p + 1e-12)).sum(1)
  np.testing.assert_allclose(scores.entropy, entropy, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
    scores.features[:], taps["penultimate"], rtol=2e-3, atol=1e-3
  )


def test_scores_of_another_input_or_architecture_are_not_taken(
  inputs, tmp_path
):
  pool = open_pool(f"npz:{inputs / 'pool.npz'}", (8, 8, 1), tmp_path)
  one, teacher = look(inputs, pool)
  mesh = make_mesh(1)
  card = teachers.load(inputs / "t")[1]
  spec = dataclasses.replace(teacher.spec, mean=(0.9,))
  other = dataclasses.replace(teacher, spec=spec)
  again = pool_scores.score_pool(pool, other, card, mesh)
  assert np.abs(again.confidence - one.confidence).max() > 1e-3
  renamed = dataclasses.replace(card, arch="another")
  pool_scores.score_pool(pool, teacher, renamed, mesh)
  assert len(list(pool.cache.glob("teacher-*"))) == 3


def test_a_damaged_part_is_scored_again(inputs, tmp_path):
  pool = open_pool(f"npz:{inputs / 'pool.npz'}", (8, 8, 1), tmp_path)
  one, _ = look(inputs, pool)
  for name in ("00000.scores.npy", "00000.features.npy"):
    (path,) = pool.cache.glob(f"teacher-*/{name}")
    path.write_bytes(path.read_bytes()[:70])
    again, _ = look(inputs, pool)
    np.testing.assert_array_equal(again.confidence, one.confidence)


def test_a_run_keeps_its_selection_and_notices_another_pool(
  inputs, tmp_path, monkeypatch, capsys
):
  pool = tmp_path / "p.npz"
  shutil.copy(inputs / "pool.npz", pool)
  workdir = tmp_path / "w"
  flags = ["--pool", f"npz:{pool}"]
  distill(inputs, "dfnd", workdir, *flags)
  first = (workdir / "selection.csv").read_bytes()
  # As if it had been killed before its end.
  (workdir / "result.json").unlink()
  monkeypatch.setattr(DFND, "select", None)
  distill(inputs, "dfnd", workdir, *flags)
  (workdir / "result.json").unlink()
  np.savez(pool, images=np.load(pool)["images"][::-1])
  with pytest.raises(SystemExit):
    distill(inputs, "dfnd", workdir, *flags)
  assert "give the pool it was made from" in capsys.readouterr().err
  assert (workdir / "selection.csv").read_bytes() == first


def test_a_finished_run_needs_no_pool(inputs, tmp_path):
  pool = tmp_path / "p.npz"
  shutil.copy(inputs / "pool.npz", pool)
  flags = ["--pool", f"npz:{pool}"]
  result = distill(inputs, "random", tmp_path / "w", *flags)
  pool.unlink()
  assert distill(inputs, "random", tmp_path / "w", *flags) == result


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--num-images", "101"], ["--num-images is 101", "has 100"]),
    (["--num-images", "0"], ["--num-images is 0"]),
    (["--pool", "folder:/no/such"], ["/no/such is not a folder"]),
    (["--selection", "/no/such.csv"], ["/no/such.csv cannot be read"]),
    (["--target", "stored"], ["--target stored", "use --target teacher"]),
    (["--mix", "3"], ["--mix is 3: it is a share, give 0 to 1"]),
  ],
)
def test_what_cannot_be_is_refused(inputs, tmp_path, capsys, flags, parts):
  with pytest.raises(SystemExit) as stop:
    distill(inputs, "random", tmp_path / "w", *flags)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  for part in parts:
    assert part in error
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("index", "words"),
  [
    (np.arange(30) // 2, "an image more than once"),
    (np.arange(30) + 80, "images from 80 to 109"),
    (np.arange(29), "29 images and 29 scores"),
    (None, "a NoneType"),
  ],
)
def test_a_selector_of_a_users_own_returns_something_else(
  inputs, tmp_path, monkeypatch, capsys, index, words
):
  chosen = None
  if index is not None:
    chosen = Selection(index, np.ones(len(index), np.float32))
  monkeypatch.setattr(DFND, "select", lambda *_: chosen)
  with pytest.raises(SystemExit) as caught:
    distill(inputs, "dfnd", tmp_path / "w")
  assert caught.value.code == 2
  error = " ".join(capsys.readouterr().err.split())
  assert f"DFND: select returned {words}: return a Selection of 30" in error
  assert not (tmp_path / "w" / "selection.csv").exists()
