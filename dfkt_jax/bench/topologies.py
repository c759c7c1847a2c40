"""TPUs that are not there, to compile for: their compiler runs anywhere.

It comes with `libtpu`, a package for Linux that needs no TPU.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dfkt_jax import parallel
from dfkt_jax.errors import UsageError

# libtpu otherwise asks Google's metadata server where it is, complains of no
# answer, and takes a lock against a second process, for there is one TPU. The
# type is that of the TPU it would run on, not of the one it compiles for.
_ALONE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def described(name: str) -> Mesh:
  """A mesh of all chips of a topology such as v5e:4x4, for "data".

  Programs can be lowered and compiled for it, and not run. To be called before
  anything else loads libtpu.

  Raises:
    UsageError: there is no libtpu, or libtpu knows no such topology.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UsageError(
      f"--topology {name}: the TPU's compiler is not installed; do so with"
      " pip install 'jax[tpu]', on Linux, with or without a TPU"
    )
  for variable, value in _ALONE.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
    said = str(error).strip().splitlines()[0][:200]
    raise UsageError(
      f"--topology {name} is none that libtpu knows ({said}): give a kind of"
      " TPU and its chips, such as v5e:4x4 or v4:2x2x2"
    ) from error
  return parallel.mesh_over(parallel.in_order(found.devices))
