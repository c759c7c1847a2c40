"""Eight fake CPU devices, and JAX as strict as it gets."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
  """A suite's worth of programs does not fit into memory with comfort."""
  yield
  jax.clear_caches()
