"""How a command ends: one sentence, and the exit code of `errors`."""

from collections.abc import Iterator
import contextlib
import os
import sys
import traceback

from rich.console import Console

from dfkt_jax.errors import DfktError, Preempted

_OF_OTHERS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")


@contextlib.contextmanager
def explained(debug: bool = False) -> Iterator[None]:
  """Turns what is raised inside into a sentence and an exit.

  Args:
    debug: faults are raised on instead, for their traceback.
  """
  try:
    yield
  except DfktError as error:
    if debug:
      _show_traceback(error.exit_code)
      raise
    _complain(str(error))
    _leave(error.exit_code)
  except KeyboardInterrupt:
    _leave(130)
  except BrokenPipeError:
    # The reader of our output has gone; so must what is left in the buffer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(1)
  except Exception as error:
    if debug:
      _show_traceback(1)
      raise
    if _several_processes() and _is_of_others(error):
      reason = str(error).splitlines()[0][:200]
      _complain(
        f"the other processes of this run no longer answer ({reason}): see what"
        " they said; the same command on all of them goes on from the last"
        " checkpoint"
      )
    else:
      _complain(
        f"stopped by an unexpected {type(error).__name__}: {error}; this is a"
        " fault of dfkt or of a method of your own: --debug shows where"
      )
    _leave(1)


def _complain(text: str) -> None:
  Console(stderr=True, soft_wrap=True).print(
    f"dfkt: {text}", markup=False, highlight=False
  )


def _several_processes() -> bool:
  """Whether this process has joined others; nothing is imported for it."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def _is_of_others(error: Exception) -> bool:
  """Whether it says that another process does not answer.

  What is raised differs: Orbax, for one, renames such errors.
  """
  return any(word in str(error) for word in _OF_OTHERS)


def _show_traceback(code: int) -> None:
  """And leaves, where there are others that a normal exit would wait for."""
  if _several_processes():
    traceback.print_exc()
    _leave(code)


def _leave(code: int) -> None:
  """Exits; from among others at once, unless all of them do (75).

  A normal exit waits for them, and they may be waiting for this one.
  """
  if code != Preempted.exit_code and _several_processes():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
