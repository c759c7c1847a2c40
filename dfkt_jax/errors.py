"""What stops a command, and the exit code it stops with.

Messages are one sentence: the file or flag, what was found, what was expected,
what to do.
"""


class DfktError(Exception):
  """The run failed (exit code 1)."""

  exit_code = 1


class UsageError(DfktError):
  """The command, a file or a setting cannot be used as given (exit code 2)."""

  exit_code = 2


class Preempted(DfktError):
  """Stopped by SIGTERM with everything saved: run it again (exit code 75)."""

  exit_code = 75
