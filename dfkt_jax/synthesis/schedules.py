"""Learning rates of optimized pixels."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["constant", "cosine"]


def warmup(
  lr: float, rising: int, steps: int, schedule: Schedule
) -> optax.Schedule:
  """Return the rate after a number of `steps`: it rises linearly, then falls.

  With s = `rising`, at step t of T:

    lr (t + 1) / s                                   t < s
    lr (1 + cos(pi (t - s) / (T - s))) / 2           cosine
    lr                                               constant
  """

  def rate(count: jax.typing.ArrayLike) -> jax.Array:
    count = jnp.asarray(count)
    rate = jnp.float32(lr)
    if rising:
      rate *= jnp.minimum(1.0, (count + 1) / rising)
    if schedule == "cosine":
      falling = max(1, steps - rising)
      share = jnp.clip((count - rising) / falling, 0.0, 1.0)
      rate *= 0.5 * (1.0 + jnp.cos(jnp.pi * share))
    return rate

  return rate
