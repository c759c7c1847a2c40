"""Eight fake CPU devices, and JAX as strict as it gets."""

import os

# Nine tenths of the suite's time is the compilation of programs that run for
# milliseconds: XLA compiles without its optimisations, five times as fast.
# Processes that tests start inherit all of it.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_use_fusion_emitters=false",
)

# Nor does it leave anything in the user's home.
os.environ["DFKT_COMPILATION_CACHE"] = "off"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
  """A suite's worth of programs does not fit into memory with comfort."""
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def _finish_programs():
  """Wait for what a test left running on its eight devices.

  The next test's small programs would queue behind it, and a full queue is a
  deadlock (`devices.loops.MAX_STEPS_IN_FLIGHT`), which XLA ends by an abort.
  """
  yield
  jax.block_until_ready(jax.live_arrays())
