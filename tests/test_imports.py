"""The core runs where heavy packages are missing, and torch is never needed."""

import os
import subprocess
import sys

import jax

from dfkt_jax import teachers
from tests.networks import tiny

MISSING = (
  *("tensorflow_datasets", "grain", "array_record", "torch"),
  *("sklearn", "matplotlib", "tensorboardX"),
)


def test_distilling_needs_none_of_the_heavy_packages(tmp_path):
  network = jax.device_get(tiny(widths=(16, 32, 64)))
  teachers.save(
    tmp_path / "t", network, teachers.describe(network, "convnet-half")
  )
  words = (
    f"distill noise --teacher {tmp_path}/t --student convnet-half"
    f" --workdir {tmp_path}/w --steps 2 --student-steps 2 --batch-size 4"
  )
  code = f"""
import sys

class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {MISSING}:
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from dfkt_jax.cli.dispatch import main
main({words.split()})
main(["export", "{tmp_path}/w", "--out", "{tmp_path}/s.pth", "--format", "pth"])
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "s.pth").exists()
