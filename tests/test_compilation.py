import os
import subprocess
import sys

import pytest

from dfkt_jax import compilation
from dfkt_jax.compilation import DIRECTORY, SWITCH, keep_on_disk

PROGRAM = """
from dfkt_jax import compilation
folder = compilation.keep_on_disk()
import hashlib
import jax, jax.monitoring
import numpy as np
from dfkt_jax.distillation.kd import KD
from dfkt_jax.synthesis.contract import Batch
from tests.networks import tiny

hits = []
jax.monitoring.register_event_listener(
  lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None
)
teacher, student = tiny(0), tiny(1)
kd = KD(steps=10)
state = kd.init(student)
images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
batch = Batch(images, np.zeros(8, np.int32))
state, _ = jax.jit(kd.step)(jax.random.key(1), state, batch, teacher)
leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
print(hashlib.sha256(b"".join(leaves)).hexdigest(), len(hits))
"""


def test_it_is_the_users_own_folder(tmp_path):
  environment = {"XDG_CACHE_HOME": str(tmp_path)}
  folder = keep_on_disk(environment)
  assert folder == tmp_path / "dfkt_jax" / "xla"
  assert environment[DIRECTORY] == str(folder)
  assert folder.stat().st_mode & 0o077 == 0


def test_jaxs_own_variable_is_heeded(tmp_path):
  environment = {DIRECTORY: str(tmp_path / "mine"), "XDG_CACHE_HOME": "/no"}
  assert keep_on_disk(environment) == tmp_path / "mine"
  assert environment[DIRECTORY] == str(tmp_path / "mine")


def test_a_relative_cache_home_is_ignored(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  folder = keep_on_disk({"XDG_CACHE_HOME": "here"})
  assert folder == tmp_path / ".cache" / "dfkt_jax" / "xla"


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no"])
def test_it_can_be_turned_off(tmp_path, word):
  environment = {
    SWITCH: word,
    DIRECTORY: str(tmp_path),
    "XDG_CACHE_HOME": str(tmp_path),
  }
  assert keep_on_disk(environment) is None
  assert DIRECTORY not in environment
  assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_is_done_without(tmp_path):
  (tmp_path / "file").write_text("")
  environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
  assert keep_on_disk(environment) is None
  assert DIRECTORY not in environment


def test_importing_the_library_changes_nothing():
  names = (DIRECTORY, compilation.LEAST_SECONDS)
  before = [os.environ.get(name) for name in names]
  script = (
    "import os, jax, dfkt_jax.cli, dfkt_jax.commands.distill;"
    "print(jax.config.jax_compilation_cache_dir, os.environ.get("
    f"{compilation.LEAST_SECONDS!r}))"
  )
  found = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  assert found.stdout.split() == [str(value) for value in before]


def test_a_kept_program_gives_the_same_bits_and_says_nothing(tmp_path):
  environment = {
    **{k: v for k, v in os.environ.items() if k != SWITCH},
    "XDG_CACHE_HOME": str(tmp_path),
    compilation.LEAST_SECONDS: "0",
  }
  answers = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, "-W", "error", "-c", PROGRAM],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stderr == ""
    answers.append(done.stdout.split())
  (first, hits_before), (second, hits_after) = answers
  assert first == second
  assert int(hits_after) > int(hits_before)
  assert list((tmp_path / "dfkt_jax" / "xla").iterdir())
