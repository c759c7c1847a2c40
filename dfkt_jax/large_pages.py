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
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def begin_again(environment: Mapping[str, str] = os.environ) -> None:
  """Replaces the process by its own command with large pages, if they help.

  It keeps its number, its folder and its files. To be called before anything is
  done. Comes back where large pages are not to be had (no Linux, another C
  library, a kernel that is told not to) or need not be asked for (the kernel
  gives them to all, GLIBC_TUNABLES says something of them).
  """
  said = environment.get(VARIABLE, "")
  if TUNABLE in said or not sys.executable or not _on_request():
    return
  tunables = f"{said}:{TUNABLE}=1" if said else f"{TUNABLE}=1"
  with contextlib.suppress(OSError):
    os.execve(
      sys.executable,
      [sys.executable, *sys.orig_argv[1:]],
      {**environment, VARIABLE: tunables},
    )


def _on_request() -> bool:
  """Whether the kernel gives large pages to a process that asks for them."""
  try:
    name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    new = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return name == "glibc" and new and "[madvise]" in MODE.read_text()
  except (AttributeError, OSError, ValueError):  # another system or C library
    return False
