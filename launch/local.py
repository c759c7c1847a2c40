"""Start several processes of one run on the CPU of this machine.

COMMAND  python launch/local.py --processes 2 -- distill dfq --teacher t20 \
           --student resnet20 --workdir runs/dfq

After `--` are the words of a `dfkt` command that runs on a mesh (distill,
synthesize, adapt, teacher train, run), the same for every process. Each has
--devices-per-process CPU devices; together they form one mesh, like the hosts
of a pod. Their output is prefixed with their number. SIGTERM and the first
Ctrl-C are forwarded: all processes save at the same round and exit with 75, and
the same command resumes from there; another Ctrl-C kills them. When one fails
the others are stopped, unless --go-on is given, for independent work such as
the batches of `synthesize deep-inversion`. If this script is killed, they save
and stop.

Exit code: that of the process that failed, or else 75 if any was preempted.
"""

# ruff: noqa: T201 (a script prints its output)

import argparse
from collections.abc import Sequence
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

FINE = (None, 0, 75)  # running, done, preempted
USAGE = 2  # the exit code of input that is refused
GRACE_SECONDS = 60  # that the others have to end once one has failed


def main(argv: Sequence[str] | None = None) -> int:
  args = _parse(argv)
  environments = _environments(args)
  command = [sys.executable, "-m", "dfkt_jax", *args.words]
  if args.dry_run:
    for environment in environments:
      names = [f"{name}={value}" for name, value in environment.items()]
      print(shlex.join(["env", *names, *command]))
    return 0
  children = [
    subprocess.Popen(
      command,
      env={**os.environ, **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      # Ctrl-C reaches a whole group; each process must be signalled only once.
      start_new_session=True,
      preexec_fn=_stop_with_parent,
    )
    for environment in environments
  ]
  interrupted = []

  def forward(number, _):
    _send(children, signal.SIGKILL if interrupted else signal.SIGTERM)
    if number == signal.SIGINT:
      interrupted.append(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, forward)
  readers = [
    threading.Thread(target=_echo, args=(index, child.stdout))
    for index, child in enumerate(children)
  ]
  for reader in readers:
    reader.start()
  code = _wait(children, None if args.go_on else GRACE_SECONDS)
  for reader in readers:
    reader.join()
  return code


def _parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--processes", type=_count, default=2)
  parser.add_argument("--devices-per-process", type=_count, default=1)
  parser.add_argument(
    "--port", type=_count, help="port of process 0 (default: a free one)"
  )
  parser.add_argument(
    "--go-on",
    action="store_true",
    help="do not stop the others when one fails",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print the commands only"
  )
  parser.add_argument(
    "words", nargs="+", help="words of a dfkt command, after --"
  )
  return parser.parse_args(argv)


def _count(text):
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a whole number from 1 up"
    )
  return int(text)


def _environments(args):
  """Return the environment variables of each process besides ours."""
  port = args.port or _free_port()
  return [
    {
      "DFKT_COORDINATOR": f"127.0.0.1:{port}",
      "DFKT_PROCESSES": str(args.processes),
      "DFKT_PROCESS": str(index),
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(args.devices_per_process),
    }
    for index in range(args.processes)
  ]


def _stop_with_parent():
  """Ask Linux to send this process a SIGTERM when its parent dies."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def _echo(index, stream):
  for line in stream:
    # Go on reading without an output: a child with a full pipe blocks.
    with contextlib.suppress(OSError):
      print(f"[{index}] {line}", end="", flush=True)


def _send(children, number):
  for child in children:
    if child.poll() is None:
      child.send_signal(number)


def _wait(children, grace):
  """Wait until all have ended; return the exit code.

  Args:
    grace: seconds that the others have once one has failed; None: no limit.
  """
  deadline, failed = None, None
  while None in (codes := [child.poll() for child in children]) or not failed:
    bad = [index for index, code in enumerate(codes) if code not in FINE]
    if bad and failed is None:
      # If several ended at once: JAX aborts the processes that are left, and a
      # kill is the cause, not the effect.
      rank = lambda index: (codes[index] == -signal.SIGABRT, codes[index])
      first = min(bad, key=rank)
      failed = codes[first]
      text = f"process {first} ended with {failed}: the others go on"
      if grace is not None:
        deadline = time.monotonic() + grace
        text = (
          f"process {first} ended with {failed}: the others are stopped if they"
          f" have not ended in {grace} s"
        )
      _report(text)
    elif None not in codes:
      return max(codes)
    if deadline is not None and time.monotonic() > deadline:
      _send(children, signal.SIGKILL)
    time.sleep(0.1)
  if USAGE in codes:
    return USAGE  # a refusal is the cause; to lose a process is the effect
  return failed if failed >= 0 else 128 - failed  # as a shell reports it


def _report(text):
  print(f"local.py: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
