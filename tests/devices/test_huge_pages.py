"""A process that restarts itself to get huge pages."""

import os
import subprocess
import sys

import pytest

from dfkt_jax.devices import huge_pages
from dfkt_jax.devices.huge_pages import RESTARTED, TUNABLE, VARIABLE


@pytest.fixture
def restarts(monkeypatch, tmp_path):
  """Record the commands that would replace this process."""
  calls = []
  monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
  monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36", raising=False)
  monkeypatch.setattr(huge_pages, "MODE", tmp_path / "enabled")
  (tmp_path / "enabled").write_text("always [madvise] never\n")
  return calls


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, f"{TUNABLE}=1"),
    ({VARIABLE: "glibc.malloc.check=3"}, f"glibc.malloc.check=3:{TUNABLE}=1"),
  ],
)
def test_the_same_command_is_restarted(restarts, given, expected):
  huge_pages.restart_process({"HOME": "/home/x", **given})
  ((program, words, environment),) = restarts
  assert program == words[0] == sys.executable
  assert words[1:] == sys.orig_argv[1:]
  own = {VARIABLE: expected, RESTARTED: str(os.getpid())}
  assert environment == {"HOME": "/home/x", **own}


def test_it_restarts_once_whatever_python_does_to_the_variable(restarts):
  huge_pages.restart_process({RESTARTED: str(os.getpid())})
  assert not restarts
  huge_pages.restart_process({RESTARTED: str(os.getppid())})
  assert len(restarts) == 1


@pytest.mark.parametrize("words", [["python"], ["python", "-", "list"]])
def test_a_program_from_standard_input_cannot_be_read_again(
  restarts, monkeypatch, words
):
  monkeypatch.setattr(sys, "orig_argv", words)
  huge_pages.restart_process({})
  assert not restarts


def test_a_tunable_of_the_users_is_kept(restarts):
  huge_pages.restart_process({VARIABLE: f"{TUNABLE}=1"})
  huge_pages.restart_process({VARIABLE: f"glibc.malloc.check=3:{TUNABLE}=0"})
  assert not restarts


@pytest.mark.parametrize("mode", ["[always] madvise never", None])
def test_a_kernel_that_need_not_or_cannot_be_asked(restarts, mode):
  huge_pages.MODE.unlink()
  if mode:
    huge_pages.MODE.write_text(mode)
  huge_pages.restart_process({})
  assert not restarts


@pytest.mark.parametrize("library", ["glibc 2.34", "", None, "NPTL"])
def test_another_c_library(restarts, monkeypatch, library):
  monkeypatch.setattr(os, "confstr", lambda _: library)
  huge_pages.restart_process({})
  assert not restarts


def test_a_process_that_cannot_restart_goes_on(restarts, monkeypatch):
  def refuse(*call):
    restarts.append(call)
    raise OSError

  monkeypatch.setattr(os, "execve", refuse)
  huge_pages.restart_process({})
  assert len(restarts) == 1


def test_words_and_codes_survive_it(tmp_path):
  """The command line keeps them, whatever pages this machine has."""
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


def test_the_process_is_the_same_and_has_what_it_asked_for():
  code = (
    "import os; from dfkt_jax.devices import huge_pages;"
    "huge_pages.restart_process();"
    "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'))"
  )
  kept = {k: v for k, v in os.environ.items() if k != VARIABLE}
  started = subprocess.Popen(
    [sys.executable, "-c", code],
    env=kept,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  said, _ = started.communicate(timeout=60)
  has = f"{TUNABLE}=1" if huge_pages._on_request() else "None"
  assert said.split() == [str(started.pid), has]
