"""Device meshes.

A mesh has an axis "data", over which batches and the replay buffer are sharded,
and an axis "model", usually of size 1, over which large parameters are
sharded (`network.placement`). Everything else is replicated. BatchNorm
statistics are global over the mesh, as in the papers, which used one GPU. Axes
are Auto: under Explicit axes, gathers from a sharded feature bank do not
type-check.
"""

from collections.abc import Sequence
import contextlib
import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

from dfkt_jax.errors import UsageError

DATA, MODEL = "data", "model"
MAX_CPU_DEVICES = 1024  # 20,000, by a typo, take more than a minute
CPU_DEVICES_FLAG = "xla_force_host_platform_device_count"
# The number of devices that a CPU is split into unless the user gives another.
# Two have most of the gain, and the same number on every machine sums in the
# same order.
CPU_DEVICES = 2


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
  """Return a mesh over the first `data * model` devices.

  Args:
    data: devices that a batch is sharded over; None: all.
    model: devices that a large parameter is sharded over.

  Raises:
    UsageError: there are fewer devices, several processes would not use all of
      theirs, or a row of the mesh would have devices of two processes.
  """
  available = by_process(jax.devices())
  if data is None:
    data = max(1, len(available) // max(1, model))
  count = data * model
  flag = f"--mesh {DATA}={data}" + (f",{MODEL}={model}" if model != 1 else "")
  if jax.process_count() > 1 and count != len(available):
    raise UsageError(
      f"{flag}: the {jax.process_count()} processes of this run have"
      f" {len(available)} devices together, and all must be used: leave the"
      f" flag out, or give axes whose product is {len(available)}"
    )
  if model > 1 and jax.local_device_count() % model:
    raise UsageError(
      f"{flag}: a process has {jax.local_device_count()} devices: give a model"
      f" axis that divides {jax.local_device_count()}"
    )
  if min(data, model) < 1 or count > len(available):
    raise UsageError(
      f"{flag}: this machine has {len(available)}"
      f" {available[0].platform} device(s): give axes of 1 or more whose"
      f" product is at most {len(available)}"
    )
  return mesh_of(available[:count], model)


def by_process(devices: Sequence[Any]) -> list[Any]:
  """Return devices in the order of their processes.

  The rows of a batch are then in the order of processes too, and every row of
  the mesh has devices of one process. `jax.make_mesh` would order TPUs by their
  position.
  """
  return sorted(devices, key=lambda d: (d.process_index, d.id))


def mesh_of(devices: Sequence[Any], model: int = 1) -> Mesh:
  """Return a mesh of devices in their order.

  `model` divides the number of devices.
  """
  shape = (len(devices) // model, model)
  return Mesh(
    np.array(devices).reshape(shape),
    (DATA, MODEL),
    axis_types=(AxisType.Auto,) * 2,
  )


def parse_mesh(text: str | None, cpu_devices: int = CPU_DEVICES) -> Mesh:
  """Return the mesh that --mesh names, such as data=8 or data=4,model=2.

  Without a name the mesh is over all devices. JAX takes a CPU for one device,
  on which a single thread computes a weight gradient. So the CPU is split into
  the number of devices that is named, else into `cpu_devices` but no more than
  it has processors, unless the environment or JAX's configuration gives a
  number. Call this before JAX computes anything: after that the number of CPU
  devices is fixed.

  Raises:
    UsageError: the text is not a mesh, or there are too few devices for it.
  """
  sizes: dict[str, int] = {}
  for part in text.split(",") if text else ():
    name, _, size = part.partition("=")
    is_number = size.isascii() and size.isdecimal()
    if name not in (DATA, MODEL) or name in sizes or not is_number:
      raise UsageError(
        f"--mesh {text}: expected {DATA}=N, or {DATA}=N,{MODEL}=M, with whole"
        " numbers of devices"
      )
    sizes[name] = int(size)
  if sizes:
    _split_cpu(sizes.get(DATA, 1) * sizes.get(MODEL, 1))
  else:
    _split_cpu(min(cpu_devices, cpu_count()))
  return make_mesh(**sizes)


def local_mesh(mesh: Mesh) -> Mesh:
  """Return a mesh over this process's devices of `mesh`, all for data."""
  own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
  return mesh_of(own)


def cpu_count() -> int:
  """Return the number of processors that this process may use.

  XLA:CPU has the same number of threads.
  """
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _split_cpu(count):
  """Let JAX's CPU backend have `count` devices, unless it is initialized.

  With GPUs or TPUs the mesh is over those, and this changes nothing.
  """
  # JAX_NUM_CPU_DEVICES sets it too.
  configured = jax.config.jax_num_cpu_devices != -1  # type: ignore
  given = configured or CPU_DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
  # The launcher of several processes sets their number of devices.
  if count <= 1 or given or jax.distributed.is_initialized():
    return
  # An initialized backend raises; `make_mesh` then reports its devices.
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", min(count, MAX_CPU_DEVICES))
