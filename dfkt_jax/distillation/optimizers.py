"""Optimisers by PyTorch's conventions.

Weight decay is added to the gradient, of all parameters, before momentum or
moments; the learning rate multiplies the velocity (v = m v + g, p -= lr v).
"""

from typing import Literal

import optax

Name = Literal["sgd", "adam"]


def make(
  name: Name, lr: float, steps: int, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """SGD with momentum, or Adam; `lr` falls to 0 along a cosine over `steps`.

  The cosine moves every step, where PyTorch recipes move it every epoch.
  """
  schedule = optax.cosine_decay_schedule(lr, steps)
  decay = optax.add_decayed_weights(weight_decay)
  if name == "adam":
    return optax.chain(decay, optax.adam(schedule))
  return optax.chain(decay, optax.sgd(schedule, momentum))
