"""A user's own file: it is imported, and its class held to its contract."""

from dfkt_jax.user_modules.contract_checks import KIND_WORDS, Kind, check
from dfkt_jax.user_modules.loading import (
  USER_MODULE,
  load_method,
  load_module,
)
from dfkt_jax.user_modules.version_0_1 import describe_failure

__all__ = [
  "KIND_WORDS",
  "USER_MODULE",
  "Kind",
  "check",
  "describe_failure",
  "load_method",
  "load_module",
]
