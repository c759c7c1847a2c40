"""Memory in pages of 2 MB, for the command line on Linux.

XLA:CPU allocates the intermediates of every step anew, and Linux clears them in
pages of 4 kB: a fifth of a ResNet-20 student step (docs/performance.md). The C
library asks for large pages only where its environment says so as a process
begins, and has no call for it later, so the process begins again.
"""

from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
import sys

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"  # 0: as it was; GNU C library 2.35 and newer
# The number of the process that has begun again. Where `python` is a script
# that sets GLIBC_TUNABLES itself, that variable would not tell.
BEGUN = "DFKT_BEGUN_AGAIN"
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def begin_again(environment: Mapping[str, str] = os.environ) -> None:
  """Replaces the process by its own command with large pages, if they help.

  It keeps its number, its folder and its files. To be called before anything is
  done. Comes back where large pages are not to be had (no Linux, another C
  library, a kernel that is told not to), need not be asked for (the kernel
  gives them to all, GLIBC_TUNABLES says something of them), or would cost the
  program (Python reads it from its standard input).
  """
  said, number = environment.get(VARIABLE, ""), str(os.getpid())
  if TUNABLE in said or environment.get(BEGUN) == number:
    return
  words = sys.orig_argv[1:]
  if not words or "-" in words or not sys.executable or not _on_request():
    return
  tunables = f"{said}:{TUNABLE}=1" if said else f"{TUNABLE}=1"
  with contextlib.suppress(OSError):
    os.execve(
      sys.executable,
      [sys.executable, *words],
      {**environment, VARIABLE: tunables, BEGUN: number},
    )


def _on_request() -> bool:
  """Whether the kernel gives large pages to a process that asks for them."""
  try:
    name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    new = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return name == "glibc" and new and "[madvise]" in MODE.read_text()
  except (AttributeError, OSError, ValueError):  # another system or C library
    return False
