"""Errors that stop a command, with their exit codes.

A message is one sentence with the file or flag, what was found, what was
expected, and what to do.
"""


class DfktError(Exception):
  """The run failed (exit code 1)."""

  exit_code = 1


class UsageError(DfktError):
  """The command, a file or a setting cannot be used as given (exit code 2)."""

  exit_code = 2


class Preempted(DfktError):
  """SIGTERM stopped the run after it was saved: run it again (exit code 75)."""

  exit_code = 75
