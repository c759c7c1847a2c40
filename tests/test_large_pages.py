import os
import subprocess
import sys

import pytest

from dfkt_jax import large_pages
from dfkt_jax.large_pages import BEGUN, TUNABLE, VARIABLE


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
  own = {VARIABLE: expected, BEGUN: str(os.getpid())}
  assert environment == {"HOME": "/home/x", **own}


def test_it_begins_again_once_whatever_python_does_to_the_variable(began):
  large_pages.begin_again({BEGUN: str(os.getpid())})
  assert not began
  large_pages.begin_again({BEGUN: str(os.getppid())})
  assert len(began) == 1


@pytest.mark.parametrize("words", [["python"], ["python", "-", "list"]])
def test_a_program_from_standard_input_cannot_be_read_again(
  began, monkeypatch, words
):
  monkeypatch.setattr(sys, "orig_argv", words)
  large_pages.begin_again({})
  assert not began


def test_it_heeds_a_no(began):
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


def test_words_and_codes_survive_it(tmp_path):
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


def test_the_process_is_the_same_and_has_what_it_asked_for():
  code = (
    "import os; from dfkt_jax import large_pages; large_pages.begin_again();"
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
  has = f"{TUNABLE}=1" if large_pages._on_request() else "None"
  assert said.split() == [str(started.pid), has]
