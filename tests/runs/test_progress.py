"""Progress: a bar on a terminal, lines elsewhere, and only of process 0."""

import io

import jax
import pytest

from dfkt_jax.runs.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def terminal(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
    monkeypatch.delenv(name, raising=False)
  return Terminal()


@pytest.fixture
def plain(monkeypatch):
  for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    monkeypatch.delenv(name, raising=False)
  return io.StringIO()


class Unread:
  """A device value, which must not be read."""

  def __float__(self):
    raise AssertionError("read although nothing is shown")


def test_plain_lines_come_once_an_interval_and_at_the_end(plain):
  now = [0.0]
  with Progress("distill", total=40, file=plain, clock=lambda: now[0]) as bar:
    for step in range(1, 31):
      now[0] = float(step)
      kl = 0.5 if step in (1, 11, 21, 30) else Unread()
      bar.update(step, {"kl": kl}, images_per_second=1234.5)
  lines = plain.getvalue().splitlines()
  assert lines[0] == ("distill  1/40  2%  1,234 images/s  ETA -:--:--  kl 0.5")
  assert lines[1].startswith("distill  11/40  28%")
  assert "ETA 0:00:29" in lines[1]
  assert [line.split()[1] for line in lines] == [
    "1/40",
    "11/40",
    "21/40",
    "30/40",
  ]


def test_the_pace_of_a_resumed_run_leaves_out_earlier_steps(plain):
  now = [0.0]
  clock = lambda: now[0]
  with Progress(
    "x", total=1020, initial=1000, interval=0, file=plain, clock=clock
  ) as bar:
    for step, now[0] in ((1001, 60.0), (1002, 61.0)):
      bar.update(step)
  assert plain.getvalue().splitlines() == [
    "x  1001/1020  98%  ETA -:--:--",
    "x  1002/1020  98%  ETA 0:00:18",
  ]


def test_text_is_printed_unchanged(plain):
  long = "saved /a/[b]/:smile:/" + "x" * 200
  with Progress("x", total=1, file=plain) as bar:
    bar.say(long)
  assert plain.getvalue() == long + "\n"


def test_a_terminal_gets_a_bar_with_losses_and_a_line_above(terminal):
  with Progress("distill", total=10, initial=4, file=terminal) as bar:
    bar.update(5, {"kl[0]": 0.12345, "ce": float("nan")}, images_per_second=77)
    bar.say("[step] saved")
  text = terminal.getvalue()
  for part in ("distill", "━", "50%", "5/10", "77 images/s", "ETA"):
    assert part in text
  assert "kl[0] 0.1235  ce nan" in text
  assert "[step] saved\n" in text


def test_a_terminal_always_shows_the_last_step(terminal):
  with Progress("x", total=9, file=terminal, clock=lambda: 0.0) as bar:
    for step in range(1, 10):
      bar.update(step, {"kl": float(step)})
  assert "kl 9" in terminal.getvalue()
  assert "100%" in terminal.getvalue()


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch):
  monkeypatch.setenv("TERM", "dumb")
  with Progress("x", total=2, file=terminal) as bar:
    bar.update(2)
  assert terminal.getvalue() == "x  2/2  100%  ETA 0:00:00\n"


@pytest.mark.parametrize("kind", ["terminal", "plain"])
def test_other_processes_are_silent(kind, request, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 3)
  file = request.getfixturevalue(kind)
  with Progress("x", total=2, file=file) as bar:
    bar.update(1, {"kl": Unread()})
    bar.say("hello")
  assert file.getvalue() == ""


def test_plain_lines_go_to_standard_output(capsys):
  with Progress("x", total=1) as bar:
    bar.update(1)
  assert capsys.readouterr().out.startswith("x  1/1  100%")
