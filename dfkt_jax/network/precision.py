"""The precision of a network's arithmetic, and what it keeps for gradients.

Both belong to how a method uses a network and not to the network: parameters,
running statistics and all that is outside the network stay f32.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.network.network import Network

Precision = Literal["f32", "bf16"]


def with_precision(
  network: Network, precision: Precision, remat: bool
) -> Network:
  """Return the same network that computes in `precision`.

  "bf16" applies to convolutions and activations: our modules cast where they
  compute, and return f32 logits and BatchNorm statistics all the same. `remat`
  computes activations again for the gradient and does not keep them.

  Raises:
    UsageError: the network's module has no field for it.
  """
  changes: dict[str, Any] = {}
  if precision == "bf16":
    changes["dtype"] = jnp.bfloat16
  if remat:
    changes["remat"] = True
  if not changes:
    return network
  module = network.module
  missing = set(changes) - {field.name for field in dataclasses.fields(module)}
  if missing:
    name = missing.pop()
    flag = {"dtype": "--precision bf16", "remat": "--remat True"}[name]
    raise UsageError(
      f"{flag}: the architecture {type(module).__name__} has no field {name!r}"
      " for it: leave the flag out"
    )
  return dataclasses.replace(network, module=module.clone(**changes))
