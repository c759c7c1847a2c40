import os
import subprocess
import sys

import pytest

from dfkt_jax import large_pages
from dfkt_jax.large_pages import TUNABLE, VARIABLE


@pytest.fixture
def began(monkeypatch, tmp_path):
  """What the process was replaced by, in place of replacing it."""
  calls = []
  monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
  monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36", raising=False)
  monkeypatch.setattr(large_pages, "MODE", tmp_path / "enabled")
  (tmp_path / "enabled").write_text("always [madvise] never\n")
  return calls


@pytest.mark.parametrize(
  ("said", "expected"),
  [
    ({}, f"{TUNABLE}=1"),
    ({VARIABLE: "glibc.malloc.check=3"}, f"glibc.malloc.check=3:{TUNABLE}=1"),
  ],
)
def test_the_same_command_begins_again(began, said, expected):
  large_pages.begin_again({"HOME": "/home/x", **said})
  ((program, words, environment),) = began
  assert program == words[0] == sys.executable
  assert words[1:] == sys.orig_argv[1:]
  assert environment == {"HOME": "/home/x", VARIABLE: expected}


def test_it_begins_again_once_and_heeds_a_no(began):
  large_pages.begin_again({VARIABLE: f"{TUNABLE}=1"})
  large_pages.begin_again({VARIABLE: f"glibc.malloc.check=3:{TUNABLE}=0"})
  assert not began


@pytest.mark.parametrize("mode", ["[always] madvise never", None])
def test_a_kernel_that_need_not_or_cannot_be_asked(began, mode):
  large_pages.MODE.unlink()
  if mode:
    large_pages.MODE.write_text(mode)
  large_pages.begin_again({})
  assert not began


@pytest.mark.parametrize("library", ["glibc 2.34", "", None, "NPTL"])
def test_another_c_library(began, monkeypatch, library):
  monkeypatch.setattr(os, "confstr", lambda _: library)
  large_pages.begin_again({})
  assert not began


def test_a_process_that_cannot_begin_again_goes_on(began, monkeypatch):
  def refuse(*call):
    began.append(call)
    raise OSError

  monkeypatch.setattr(os, "execve", refuse)
  large_pages.begin_again({})
  assert len(began) == 1


def test_words_codes_and_the_process_survive_it(tmp_path):
  """Of the command line itself, with whatever pages this machine has."""
  kept = {k: v for k, v in os.environ.items() if k != VARIABLE}
  started = subprocess.Popen(
    [sys.executable, "-m", "dfkt_jax", "report", "a folder with spaces"],
    env=kept,
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  _, said = started.communicate(timeout=120)
  assert started.returncode == 2
  assert "a folder with spaces" in said


def test_the_environment_that_the_process_has_in_the_end():
  code = (
    "import os; from dfkt_jax import large_pages;"
    "large_pages.begin_again(); print(os.environ.get('GLIBC_TUNABLES'))"
  )
  kept = {k: v for k, v in os.environ.items() if k != VARIABLE}
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=kept,
    capture_output=True,
    text=True,
    timeout=60,
  )
  helps = large_pages._on_request()
  assert done.stdout.split() == [f"{TUNABLE}=1" if helps else "None"]
  assert done.stderr == ""
