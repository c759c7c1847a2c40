"""Meshes of TPUs to compile for, which need not exist.

Their compiler comes with `libtpu`, a package for Linux that needs no TPU.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dfkt_jax.devices.mesh import by_process, mesh_of
from dfkt_jax.errors import UsageError

# Without these, libtpu queries Google's metadata server, warns that it gets no
# answer, and takes a lock against a second process, as for a real TPU. The type
# is that of the TPU it would run on, not of the one it compiles for.
_WITHOUT_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_mesh(name: str) -> Mesh:
  """Return a mesh over all chips of a topology such as v5e:4x4, for "data".

  Programs can be lowered and compiled for it, but not run. Call this before
  anything else loads libtpu.

  Raises:
    UsageError: libtpu is not installed, or does not know the topology.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UsageError(
      f"--topology {name}: the TPU's compiler is not installed: run"
      " pip install 'jax[tpu]', on Linux, with or without a TPU"
    )
  for variable, value in _WITHOUT_TPU.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise UsageError(
      f"--topology {name} is unknown to libtpu ({reason}): give a kind of TPU"
      " and its chips, such as v5e:4x4 or v4:2x2x2"
    ) from error
  return mesh_of(by_process(found.devices))
