"""The end of a command: a sentence, and the exit code of the error."""

from collections.abc import Iterator
import contextlib
import os
import sys
import traceback

from rich.console import Console

from dfkt_jax.errors import DfktError, Preempted

# In messages of errors about a process that is gone.
_PEER_ERRORS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")


@contextlib.contextmanager
def exit_on_error(debug: bool = False) -> Iterator[None]:
  """Turn an exception into a sentence on standard error and an exit.

  Args:
    debug: raise it on instead, for its traceback.
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
    # Nobody reads our output any more; drop what is left in the buffer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(1)
  except Exception as error:
    if debug:
      _show_traceback(1)
      raise
    if _several_processes() and _is_peer_error(error):
      reason = str(error).splitlines()[0][:200]
      _complain(
        f"the other processes of this run no longer answer ({reason}): read"
        " their output; the same command on all of them resumes from the last"
        " checkpoint"
      )
    else:
      _complain(
        f"stopped by an unexpected {type(error).__name__}"
        f"{_place_of(error)}: {error}; this is a fault of dfkt or of a method"
        " of your own: --debug shows more"
      )
    _leave(1)


def _place_of(error: Exception) -> str:
  """Return the innermost line that is not an installed package's, in words."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if "site-packages" not in f.filename]
  return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _complain(text: str) -> None:
  Console(stderr=True, soft_wrap=True).print(
    f"dfkt: {text}", markup=False, highlight=False
  )


def _several_processes() -> bool:
  """Return whether this process has joined others, without importing jax."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def _is_peer_error(error: Exception) -> bool:
  """Return whether an error means that another process does not answer.

  Its text decides: Orbax, for example, raises such errors as types of its own.
  """
  return any(word in str(error) for word in _PEER_ERRORS)


def _show_traceback(code: int) -> None:
  """Print the traceback, and exit where a normal exit would wait for others."""
  if _several_processes():
    traceback.print_exc()
    _leave(code)


def _leave(code: int) -> None:
  """Exit, at once where there are other processes, unless all exit (75).

  A normal exit waits for them, and they may be waiting for this one.
  """
  if code != Preempted.exit_code and _several_processes():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
