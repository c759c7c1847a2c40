"""Optimizers by PyTorch's conventions.

Weight decay is added to the gradient of every parameter, before momentum or
moments; the learning rate multiplies the velocity (v = m v + g, p -= lr v).
"""

from typing import Literal

import jax.numpy as jnp
import optax

Name = Literal["sgd", "adam"]
Schedule = Literal["cosine", "poly", "constant"]


def make(
  name: Name,
  lr: float,
  steps: int,
  momentum: float,
  weight_decay: float,
  schedule: Schedule = "cosine",
  nesterov: bool = False,
) -> optax.GradientTransformation:
  """Make SGD with momentum, or Adam; `lr` falls over `steps` by the schedule.

  Schedules change the rate at every step, where PyTorch recipes may change it
  at every epoch.
  """
  decay = optax.add_decayed_weights(weight_decay)
  rate = learning_rate(lr, steps, schedule)
  if name == "adam":
    return optax.chain(decay, optax.adam(rate))
  return optax.chain(decay, optax.sgd(rate, momentum, nesterov))


def learning_rate(lr: float, steps: int, schedule: Schedule) -> optax.Schedule:
  """Return the learning rate as a function of the step t of T = `steps`.

  cosine    lr (1 + cos(pi t / T)) / 2
  poly      lr (1 + 10 t / T)^-0.75 (Ganin and Lempitsky, ICML 2015)
  constant  lr
  """
  if schedule == "cosine":
    return optax.cosine_decay_schedule(lr, steps)
  if schedule == "poly":
    return lambda step: lr * jnp.power(1.0 + 10.0 * step / steps, -0.75)
  return optax.constant_schedule(lr)
