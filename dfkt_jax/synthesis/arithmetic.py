"""How networks compute where their size matters: in bf16, and with remat.

It is how a method looks at a network and not a part of it: parameters and
running statistics stay as they are, f32, and so does all outside the network.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network

Precision = Literal["f32", "bf16"]


def arranged(network: Network, precision: Precision, remat: bool) -> Network:
  """The same network that computes in `precision`, and keeps less if `remat`.

  "bf16" is of convolutions and activations: our modules cast where they use
  them, and answer f32 logits and BatchNorm statistics all the same. `remat`
  computes activations again for the gradient rather than keeping them.

  Raises:
    UsageError: the network's module knows nothing of it.
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
      " to say so to: leave the flag out"
    )
  return dataclasses.replace(network, module=module.clone(**changes))
