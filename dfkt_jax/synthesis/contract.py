"""What a synthesis method is.

A frozen dataclass of hyper-parameters with three pure methods. It holds no
arrays, calls no `jit`, prints nothing and reads no file, so it can be jitted,
vmapped over seeds and resumed.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.network import Network

State = Any  # a NamedTuple or flax struct of arrays, checkpointed as it is
Info = Any  # a NamedTuple of f32 scalars, for the log


class Batch(NamedTuple):
  """What a student learns from."""

  images: jax.Array  # f32[batch, height, width, channels] in [0, 1]
  labels: jax.Array  # i32[batch]; -1 where the method aims at no class
  # f32[batch, classes], the logits of the soft labels an image was made for;
  # None where a method makes images for none.
  soft_labels: jax.Array | None = None


def unlabelled(images: jax.Array) -> Batch:
  """Images that aim at no class."""
  return Batch(images, parallel.split(jnp.full(len(images), -1, jnp.int32)))


@runtime_checkable
class Synthesizer(Protocol):
  """Makes images from a teacher.

  A method may also have

    synthesis_batch_size: int, the images one step works on (else the student's
      batch size);
    transfer: the `Transfer` recipe its paper distils with (else the default);
    restart(key, state, teacher, student) -> State: begins the next batch once
      a finished one went to the pool (else `init`, which keeps nothing);
    stages(steps): see the function of that name.
  """

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State: ...

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]: ...

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch: ...


def stages(method: Synthesizer, steps: int) -> list[tuple[Synthesizer, int]]:
  """Who makes one batch in `steps` steps, one after the other, and how long.

  Most methods do it alone. One whose step changes shape on the way, as for
  images of two resolutions, says so by `stages(steps)`, methods and their steps
  that sum up to `steps` and share one State.
  """
  if hasattr(method, "stages"):
    return method.stages(steps)  # type: ignore
  return [(method, steps)]
