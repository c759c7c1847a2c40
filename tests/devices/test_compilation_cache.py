"""Compiled programs that JAX keeps on disk, in the user's own folder."""

import os
import subprocess
import sys

import pytest

from dfkt_jax.devices import compilation_cache
from dfkt_jax.devices.compilation_cache import DIRECTORY, SWITCH, enable

PROGRAM = """
from dfkt_jax.devices import compilation_cache
compilation_cache.enable()
import hashlib
import jax, jax.monitoring
import numpy as np
from dfkt_jax.contracts import Batch, Context
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from tests.networks import tiny

hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None
)
teacher, student = tiny(0), tiny(1)
kd, recipe = KD(), Recipe(steps=10)
state = kd.init(jax.random.key(2), student, Context(recipe=recipe))
images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
batch = Batch(images, np.zeros(8, np.int32))
context = Context(teacher=teacher, batch=batch, recipe=recipe)
state, _ = jax.jit(kd.step)(jax.random.key(1), state, context)
leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
print(hashlib.sha256(b"".join(leaves)).hexdigest(), len(hits))
"""


def test_it_is_the_users_own_folder(tmp_path):
  environment = {"XDG_CACHE_HOME": str(tmp_path)}
  folder = enable(environment)
  assert folder == tmp_path / "dfkt_jax" / "xla"
  assert environment[DIRECTORY] == str(folder)
  assert folder.stat().st_mode & 0o077 == 0


def test_jaxs_own_variable_takes_precedence(tmp_path):
  environment = {DIRECTORY: str(tmp_path / "mine"), "XDG_CACHE_HOME": "/no"}
  assert enable(environment) == tmp_path / "mine"
  assert environment[DIRECTORY] == str(tmp_path / "mine")


def test_a_relative_cache_home_is_ignored(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  folder = enable({"XDG_CACHE_HOME": "here"})
  assert folder == tmp_path / ".cache" / "dfkt_jax" / "xla"


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no"])
def test_it_can_be_turned_off(tmp_path, word):
  environment = {
    SWITCH: word,
    DIRECTORY: str(tmp_path),
    "XDG_CACHE_HOME": str(tmp_path),
  }
  assert enable(environment) is None
  assert DIRECTORY not in environment
  assert not list(tmp_path.iterdir())


def test_without_a_writable_folder_nothing_is_kept(tmp_path):
  (tmp_path / "file").write_text("")
  environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
  assert enable(environment) is None
  assert DIRECTORY not in environment


def test_importing_the_library_changes_nothing():
  names = (DIRECTORY, compilation_cache.LEAST_SECONDS)
  before = [os.environ.get(name) for name in names]
  script = (
    "import os, jax, dfkt_jax.cli.dispatch, dfkt_jax.commands.distill;"
    "print(jax.config.jax_compilation_cache_dir, os.environ.get("
    f"{compilation_cache.LEAST_SECONDS!r}))"
  )
  found = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  assert found.stdout.split() == [str(value) for value in before]


@pytest.mark.slow
def test_a_kept_program_gives_the_same_bits_and_prints_nothing(tmp_path):
  environment = {
    **{k: v for k, v in os.environ.items() if k != SWITCH},
    "XDG_CACHE_HOME": str(tmp_path),
    compilation_cache.LEAST_SECONDS: "0",
  }
  outputs = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, "-W", "error", "-c", PROGRAM],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stderr == ""
    outputs.append(done.stdout.split())
  (first, hits_before), (second, hits_after) = outputs
  assert first == second
  assert int(hits_after) > int(hits_before)
  assert list((tmp_path / "dfkt_jax" / "xla").iterdir())
