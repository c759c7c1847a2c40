"""Processes and devices: one mesh, and where arrays live on it.

A mesh has an axis "data", over which batches and the pool are split, and an
axis "model", mostly of 1, over which large parameters are (`placement`); all
else is on every device. BatchNorm statistics come out global over the mesh,
which is what the single-GPU papers computed. Axes are Auto:
under Explicit ones gathers from a sharded bank do not type-check.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np

from dfkt_jax.errors import DfktError, UsageError

DATA, MODEL = "data", "model"
COORDINATOR = "DFKT_COORDINATOR"  # host:port of process 0
PROCESSES = "DFKT_PROCESSES"  # how many there are
PROCESS = "DFKT_PROCESS"  # which of them this is, from 0 up
CLUSTER = "DFKT_CLUSTER"  # 1: JAX finds all of that out by itself
MOST_CPU_DEVICES = 1024  # a typo's 20,000 take more than a minute
CPU_DEVICES_FLAG = "xla_force_host_platform_device_count"
# That a CPU is split into where nobody says into how many. Two have most of the
# gain, and the same on every machine adds numbers up in the same order.
CPU_DEVICES = 2
HEARTBEAT_SECONDS = 30  # after which a process that is not heard of is dead


def start(
  environment: Mapping[str, str] = os.environ, apart: bool = False
) -> None:
  """Joins the other processes of a run, where the environment tells of any.

  Either DFKT_COORDINATOR, DFKT_PROCESSES and DFKT_PROCESS say where, how many
  and which (`launch/local.py` sets them), or DFKT_CLUSTER=1 has JAX ask what it
  runs under: SLURM, Open MPI, a TPU pod, GKE. With none of them the run has one
  process. To be called before JAX computes anything.

  Args:
    apart: the work needs no other process, so they meet only under
      DFKT_CLUSTER=1, and the death of one harms nobody. `place` tells which
      part of the work is this process's.

  Raises:
    UsageError: these variables do not fit together.
    DfktError: the others did not come.
  """
  names = (COORDINATOR, PROCESSES, PROCESS)
  given = [name for name in names if environment.get(name)]
  cluster = environment.get(CLUSTER, "0") not in ("", "0")
  if not cluster and (apart or not given):
    return
  if cluster and given:
    raise UsageError(
      f"{CLUSTER} and {', '.join(given)} are both set: keep one or the other"
    )
  if given and len(given) < len(names):
    missing = [name for name in names if name not in given]
    raise UsageError(
      f"{', '.join(given)} set and {', '.join(missing)} not: set all three, or"
      " none for a run of one process"
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
      f"this process could not join the others of its run ({reason}): see that"
      " all of them are started and reach process 0"
    ) from error


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
  """Which process this is and of how many, whether they have met or not.

  As JAX counts them where they have, or else as DFKT_PROCESS and DFKT_PROCESSES
  say, or else the only one.

  Raises:
    UsageError: these variables do not fit together.
  """
  if jax.process_count() > 1:
    return jax.process_index(), jax.process_count()
  given = [name for name in (PROCESS, PROCESSES) if environment.get(name)]
  if not given:
    return 0, 1
  if len(given) == 1:
    (missing,) = {PROCESS, PROCESSES} - set(given)
    raise UsageError(
      f"{given[0]} is set and {missing} not: set both, or none for one process"
    )
  return _numbers(environment)


def _numbers(environment):
  """The number of this process, from 0 up, and how many there are."""
  try:
    count, index = int(environment[PROCESSES]), int(environment[PROCESS])
  except ValueError:
    count, index = 0, 0
  if not 0 <= index < count:
    raise UsageError(
      f"{PROCESS} is {environment[PROCESS]!r} and {PROCESSES}"
      f" {environment[PROCESSES]!r}: give a whole number from 1 up for the"
      " latter, and one from 0 up and below it for the former"
    )
  return index, count


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
  """A mesh over the first `data * model` devices.

  Args:
    data: devices a batch is split over; None: all there are.
    model: devices a large parameter is split over.

  Raises:
    UsageError: there are fewer devices than that, or a process would have none
      of them to itself.
  """
  available = in_order(jax.devices())
  if data is None:
    data = max(1, len(available) // max(1, model))
  count = data * model
  flag = f"--mesh {DATA}={data}" + (f",{MODEL}={model}" if model != 1 else "")
  if jax.process_count() > 1 and count != len(available):
    raise UsageError(
      f"{flag}: the {jax.process_count()} processes of this run have"
      f" {len(available)} devices between them, and all are used: leave it out,"
      " or give axes that multiply to that"
    )
  if model > 1 and jax.local_device_count() % model:
    raise UsageError(
      f"{flag}: a process has {jax.local_device_count()} devices: give a model"
      " axis that divides that"
    )
  if min(data, model) < 1 or count > len(available):
    raise UsageError(
      f"{flag}: this machine has {len(available)}"
      f" {available[0].platform} device(s); give axes from 1 up that multiply"
      f" to no more than {len(available)}"
    )
  return mesh_over(available[:count], model)


def in_order(devices: Sequence[Any]) -> list[Any]:
  """Devices by process: rows of a batch are then by process too.

  And a row of the mesh is of one. `jax.make_mesh` would order TPUs by where
  they stand.
  """
  return sorted(devices, key=lambda d: (d.process_index, d.id))


def mesh_over(devices: Sequence[Any], model: int = 1) -> Mesh:
  """A mesh of devices in their order, of which `model` divides the number."""
  shape = (len(devices) // model, model)
  return Mesh(
    np.array(devices).reshape(shape),
    (DATA, MODEL),
    axis_types=(AxisType.Auto,) * 2,
  )


def named_mesh(text: str | None, cpu_devices: int = CPU_DEVICES) -> Mesh:
  """The mesh that --mesh names, such as data=8 or data=4,model=2.

  Without a name it is of all devices. A CPU is one device to JAX, which leaves
  a weight gradient to one thread. It is split into as many as are named, else
  into `cpu_devices` if it has as many processors, unless the environment or
  JAX's configuration says into how many. To be called before JAX computes
  anything: after that a CPU has the devices that it has.

  Raises:
    UsageError: it names none, or one that the devices do not make up.
  """
  sizes: dict[str, int] = {}
  for part in text.split(",") if text else ():
    name, _, size = part.partition("=")
    whole = size.isascii() and size.isdecimal()
    if name not in (DATA, MODEL) or name in sizes or not whole:
      raise UsageError(
        f"--mesh {text}: expected {DATA}=N, or {DATA}=N,{MODEL}=M, with whole"
        " numbers of devices"
      )
    sizes[name] = int(size)
  if sizes:
    _split_cpu(sizes.get(DATA, 1) * sizes.get(MODEL, 1))
  else:
    _split_cpu(min(cpu_devices, processors()))
  return make_mesh(**sizes)


def processors() -> int:
  """That this process may use, which is as many threads as XLA:CPU has."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _split_cpu(count):
  """Has JAX's CPU backend, where it has not begun, come up as `count` devices.

  Where there are GPUs or TPUs the mesh is of those, and this changes nothing.
  """
  # JAX_NUM_CPU_DEVICES sets it too.
  configured = jax.config.jax_num_cpu_devices != -1  # type: ignore
  said = configured or CPU_DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
  # The devices of several processes are what their launcher makes them.
  if count <= 1 or said or jax.distributed.is_initialized():
    return
  # Too late: `make_mesh` says how many there are.
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", min(count, MOST_CPU_DEVICES))


def platform() -> str:
  """Of the current mesh's devices, else JAX's default: cpu, gpu or tpu."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def data_devices() -> int:
  """How many devices a batch is split over; 1 outside a mesh."""
  # `pmap` has a mesh of its own.
  return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def split(tree: Any) -> Any:
  """Constrains the leading axis of every array to be split over the devices.

  Arrays drawn inside jit are otherwise computed on every device in full. What
  does not divide evenly, and everything outside a mesh, is left alone.
  """
  if DATA not in jax.sharding.get_abstract_mesh().axis_names:
    return tree
  count = data_devices()

  def constrain(x):
    if x.ndim == 0 or x.shape[0] % count:
      return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA))

  return jax.tree.map(constrain, tree)


def whole(x: jax.Array) -> jax.Array:
  """Constrains an array to be whole on every device of the mesh, if any."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec())


def local(mesh: Mesh) -> Mesh:
  """This process's devices of `mesh`, as a mesh of their own, all for data."""
  own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
  return mesh_over(own)


def gather(tree: Any) -> Any:
  """Arrays, split over devices or not, as host arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def of_first_process(tree: Any) -> Any:
  """Host arrays as the first process has them, on every process."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.broadcast_one_to_all(tree)


def wait(name: str) -> None:
  """Until every process has come to this point."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
