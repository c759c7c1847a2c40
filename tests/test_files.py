"""Atomic writing of files, and messages that name them."""

import hashlib
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import files
from dfkt_jax.errors import DfktError, UsageError


def test_a_write_makes_folders_and_leaves_no_temporary_file(tmp_path):
  path = tmp_path / "a" / "b" / "text.txt"
  files.write_atomic(path, "übung")
  files.write_atomic(path, b"second")
  assert path.read_bytes() == b"second"
  assert os.listdir(path.parent) == ["text.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "state.json"
  files.write_json(path, {"step": 1})

  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", refuse)
  with pytest.raises(DfktError, match="No space left") as error:
    files.write_json(path, {"step": 2})
  # A full disk is the machine's failure, not a wrong command.
  assert error.value.exit_code == 1
  assert files.read_json(path) == {"step": 1}
  assert os.listdir(tmp_path) == ["state.json"]


def test_a_write_through_a_link_keeps_the_link(tmp_path):
  (tmp_path / "real.txt").write_text("old")
  (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
  files.write_atomic(tmp_path / "link.txt", "new")
  assert (tmp_path / "link.txt").is_symlink()
  assert (tmp_path / "real.txt").read_text() == "new"


def test_an_unwritable_path_is_named(tmp_path):
  (tmp_path / "file").write_text("in the way")
  path = tmp_path / "file" / "config.json"
  with pytest.raises(UsageError) as error:
    files.write_json(path, {})
  assert str(path) in str(error.value)
  with pytest.raises(UsageError, match="cannot be written"):
    files.write_atomic(tmp_path, "a folder is not a file")


def test_json_keeps_the_order_and_converts_arrays_and_paths(tmp_path):
  value = {
    "b": float("nan"),
    "a": [np.float32(0.5), np.int64(3), np.array([1.0, np.inf])],
    "path": Path("x/y"),
    "none": None,
    "on": np.True_,
    "jax": [jnp.float32(jnp.inf), jnp.arange(2)],
  }
  files.write_json(tmp_path / "r.json", value)
  text = (tmp_path / "r.json").read_text()
  assert text.startswith('{\n  "b": null,\n  "a": [')
  assert json.loads(text) == {
    "b": None,
    "a": [0.5, 3, [1.0, None]],
    "path": "x/y",
    "none": None,
    "on": True,
    "jax": [None, [0, 1]],
  }


def test_read_json_names_missing_and_broken_files(tmp_path):
  with pytest.raises(UsageError, match=r"gone\.json cannot be read"):
    files.read_json(tmp_path / "gone.json")
  for broken in (b'{"step": ', b"\xff\xfe", b"[" * 100_000):
    (tmp_path / "torn.json").write_bytes(broken)
    with pytest.raises(UsageError, match=r"torn\.json is not valid JSON"):
      files.read_json(tmp_path / "torn.json")


def test_sha256_is_computed_from_the_file(tmp_path):
  (tmp_path / "w").write_bytes(b"weights")
  expected = hashlib.sha256(b"weights").hexdigest()
  assert files.sha256(tmp_path / "w") == expected
  with pytest.raises(UsageError, match="cannot be read"):
    files.sha256(tmp_path / "none")
