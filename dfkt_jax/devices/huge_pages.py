"""Huge pages (2 MB) for the memory of the command line, on Linux.

XLA:CPU allocates the intermediates of every step anew, and Linux clears them in
pages of 4 kB, which is a fifth of a ResNet-20 student step
(docs/performance.md). The C library asks for huge pages only where its
environment says so when the process starts, and has no call for it later. So
the process restarts itself once.
"""

from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"  # 0: default; GNU C library 2.35 and newer
# The id of the restarted process. GLIBC_TUNABLES alone does not show a restart
# where `python` is a script that sets this variable itself.
RESTARTED = "DFKT_RESTARTED"
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_process(environment: Mapping[str, str] = os.environ) -> None:
  """Replace the process by its own command with huge pages, if they help.

  The process keeps its id, its folder and its files. Call this first of all. It
  returns where huge pages are not available (no Linux, another C library, a
  kernel that is told not to give them), need not be requested (the kernel gives
  them to all processes, or GLIBC_TUNABLES sets them already), or would lose the
  program (Python reads it from standard input).
  """
  tunables, pid = environment.get(VARIABLE, ""), str(os.getpid())
  if TUNABLE in tunables or environment.get(RESTARTED) == pid:
    return
  words = sys.orig_argv[1:]
  if not words or "-" in words or not sys.executable or not _on_request():
    return
  tunables = f"{tunables}:{TUNABLE}=1" if tunables else f"{TUNABLE}=1"
  with contextlib.suppress(OSError):
    os.execve(
      sys.executable,
      [sys.executable, *words],
      {**environment, VARIABLE: tunables, RESTARTED: pid},
    )


def _on_request() -> bool:
  """Return whether the kernel gives huge pages to processes that ask."""
  try:
    name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    new = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return name == "glibc" and new and "[madvise]" in MODE.read_text()
  except (AttributeError, OSError, ValueError):  # another system or C library
    return False
