"""The processes of one run, and their communication."""

from collections.abc import Mapping
import os
from typing import Any

import jax
from jax.experimental import multihost_utils

from dfkt_jax.errors import DfktError, UsageError

COORDINATOR = "DFKT_COORDINATOR"  # host:port of process 0
PROCESSES = "DFKT_PROCESSES"  # the number of processes
PROCESS = "DFKT_PROCESS"  # the number of this process, from 0 up
CLUSTER = "DFKT_CLUSTER"  # 1: JAX detects all three by itself
HEARTBEAT_SECONDS = 30  # without a heartbeat for this long a process is dead


def initialize(
  environment: Mapping[str, str] = os.environ, independent: bool = False
) -> None:
  """Connect to the other processes of the run, if the environment names any.

  Either DFKT_COORDINATOR, DFKT_PROCESSES and DFKT_PROCESS give the address, the
  number of processes and the number of this one (`launch/local.py` sets them),
  or DFKT_CLUSTER=1 lets JAX detect its environment: SLURM, Open MPI, a TPU pod,
  GKE. With none of them the run has one process. Call this before JAX computes
  anything.

  Args:
    independent: the work needs no communication. Processes then connect only
      under DFKT_CLUSTER=1, and all others go on if one of them dies.
      By its `process_rank` each process finds its share of the work.

  Raises:
    UsageError: these variables contradict each other.
    DfktError: the processes could not connect.
  """
  names = (COORDINATOR, PROCESSES, PROCESS)
  given = [name for name in names if environment.get(name)]
  cluster = environment.get(CLUSTER, "0") not in ("", "0")
  if not cluster and (independent or not given):
    return
  if cluster and given:
    raise UsageError(
      f"{CLUSTER} and {', '.join(given)} are both set: keep only one of them"
    )
  if given and len(given) < len(names):
    missing = [name for name in names if name not in given]
    raise UsageError(
      f"{', '.join(given)} set and {', '.join(missing)} not: set all three, or"
      " none of them for a run of one process"
    )
  where = {}
  if not cluster:
    index, count = _numbers(environment)
    where = {
      "coordinator_address": environment[COORDINATOR],
      "num_processes": count,
      "process_id": index,
    }
  try:
    jax.distributed.initialize(
      **where, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0][:200]
    raise DfktError(
      f"this process could not connect to the others of its run ({reason}):"
      " check that all of them are started and can reach process 0"
    ) from error


def process_rank(
  environment: Mapping[str, str] = os.environ,
) -> tuple[int, int]:
  """Return the number of this process, from 0 up, and of all processes.

  Connected processes have JAX's numbers. Others have those of DFKT_PROCESS and
  DFKT_PROCESSES, or (0, 1) without these variables.

  Raises:
    UsageError: these variables contradict each other.
  """
  if jax.process_count() > 1:
    return jax.process_index(), jax.process_count()
  given = [name for name in (PROCESS, PROCESSES) if environment.get(name)]
  if not given:
    return 0, 1
  if len(given) == 1:
    (missing,) = {PROCESS, PROCESSES} - set(given)
    raise UsageError(
      f"{given[0]} is set and {missing} not: set both, or neither for one"
      " process"
    )
  return _numbers(environment)


def _numbers(environment):
  """Return the number of this process, from 0 up, and of all processes."""
  try:
    count, index = int(environment[PROCESSES]), int(environment[PROCESS])
  except ValueError:
    count, index = 0, 0
  if not 0 <= index < count:
    raise UsageError(
      f"{PROCESS} is {environment[PROCESS]!r} and {PROCESSES}"
      f" {environment[PROCESSES]!r}: give a whole number of processes, 1 or"
      " more, and the number of this one, from 0 up and below it"
    )
  return index, count


def gather(tree: Any) -> Any:
  """Return arrays, sharded or not, as host arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def broadcast(tree: Any) -> Any:
  """Return the host arrays of process 0 on every process."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.broadcast_one_to_all(tree)


def barrier(name: str) -> None:
  """Wait until every process has reached this point."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
