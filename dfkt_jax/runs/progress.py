"""Display of a running loop: a progress bar, or a line every few seconds."""

from collections.abc import Callable, Mapping
import datetime
import time
from typing import Any, TextIO

import jax
from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text


class Progress:
  """Show a bar on a terminal, and elsewhere one plain line an interval.

  Only process 0 prints. Losses are read only when they are shown, so that
  device arrays may be passed at every step without stalling the device.

  Args:
    title: name of the loop.
    total: steps of the whole run.
    initial: steps already done by a run that is resumed.
    interval: seconds between plain lines.
    file: output; standard output by default.
    clock: returns seconds, for tests.
  """

  def __init__(
    self,
    title: str,
    *,
    total: int,
    initial: int = 0,
    interval: float = 10.0,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._title, self._total, self._clock = title, total, clock
    silent = jax.process_index() != 0
    self._console = Console(
      file=file, quiet=silent, markup=False, highlight=False, emoji=False
    )
    self._bar = None
    interactive = self._console.is_terminal
    if interactive and not self._console.is_dumb_terminal and not silent:
      self._bar = _bar(self._console)
      self._task = self._bar.add_task(
        title, total=total, completed=initial, rate="", left="", losses=""
      )
    self._interval = 0.2 if self._bar else interval
    self._last = (initial, {}, None)
    self._shown_step: int | None = None
    self._shown_at = -float("inf")
    self._first: tuple[int, float] | None = None

  def update(
    self,
    step: int,
    losses: Mapping[str, Any] | None = None,
    *,
    images_per_second: float | None = None,
  ) -> None:
    """Report that `step` steps are done, with the losses of the last one."""
    now = self._clock()
    self._last = (step, losses or {}, images_per_second)
    # The first step compiles: the speed is counted from its end.
    self._first = self._first or (step, now)
    if now - self._shown_at >= self._interval:
      self._show(now)

  def say(self, text: str) -> None:
    """Print a line; on a terminal, above the bar."""
    self._console.print(text, soft_wrap=True)

  def __enter__(self) -> "Progress":
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._first and self._shown_step != self._last[0]:
      self._show(self._clock())
    if self._bar:
      self._bar.stop()

  def _show(self, now: float) -> None:
    if self._console.quiet:
      return
    step, losses, rate = self._last
    self._shown_step, self._shown_at = step, now
    speed = "" if rate is None else f"{rate:,.0f} images/s"
    left = f"ETA {self._left(step, now)}"
    shown = "  ".join(f"{k} {float(v):.4g}" for k, v in losses.items())
    if self._bar:
      self._bar.update(
        self._task, completed=step, rate=speed, left=left, losses=shown
      )
      return
    share = step / self._total if self._total else 1.0
    parts = (self._title, f"{step}/{self._total}", f"{share:.0%}")
    self.say("  ".join(p for p in (*parts, speed, left, shown) if p))

  def _left(self, step: int, now: float) -> str:
    first, since = self._first or (step, now)
    if step >= self._total:
      return "0:00:00"
    if step <= first:
      return "-:--:--"
    seconds = (now - since) / (step - first) * (self._total - step)
    return str(datetime.timedelta(seconds=round(seconds)))


class _Bar(rich_progress.Progress):
  """A bar with a second line for the losses, as 80 columns are too few."""

  def get_renderables(self):
    yield from super().get_renderables()
    for task in self.tasks:
      yield Text(
        task.fields["losses"], style="dim", no_wrap=True, overflow="ellipsis"
      )


def _bar(console: Console) -> _Bar:
  column = lambda template: rich_progress.TextColumn(template, markup=False)
  return _Bar(
    column("{task.description}"),
    rich_progress.BarColumn(bar_width=20),
    column("{task.percentage:>3.0f}%"),
    column("{task.completed}/{task.total}"),
    column("{task.fields[rate]}"),
    column("{task.fields[left]}"),
    console=console,
    refresh_per_second=5,
  )
