"""What a method of source-free domain adaptation is.

A frozen dataclass of hyper-parameters with three pure methods. It holds no
arrays, calls no `jit`, prints nothing and reads no file. What it keeps of the
target images, a row for each, lives in its state (`banks`).
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import struct
import jax

from dfkt_jax.adaptation.course import Course
from dfkt_jax.network import Network

State = Any  # a NamedTuple or flax struct of arrays, checkpointed as it is
Info = Any  # a NamedTuple of f32 scalars, for the log


class Batch(NamedTuple):
  images: (
    jax.Array
  )  # f32[batch, height, width, channels] in [0, 1], as they are
  rows: jax.Array  # i32[batch], their numbers in the target


@struct.dataclass
class Answers:
  """What a network says of every target image, BatchNorm on its running
  statistics; split over the devices and filled up to divide evenly.
  """

  features: jax.Array  # f32[rows, width], what the classifier is given
  logits: jax.Array  # f32[rows, classes]
  valid: jax.Array  # bool[rows]; False: no image but padding


@runtime_checkable
class Adapter(Protocol):
  """Adapts a source network to unlabelled target images.

  A method may also have

    course: the `Course` recipe of its paper (else the default);
    relabel(key, state, answers, course) -> State: at the start of every epoch,
      with the answers of `network(state)`;
    arch: the name of the network's architecture, where it is not the source's;
    open_set: whether it tells images of classes that the source does not know.
  """

  def init(
    self, key: jax.Array, source: Network, answers: Answers, course: Course
  ) -> State:
    """The state before the first step; `answers` are the source's."""
    ...

  def step(
    self, key: jax.Array, state: State, batch: Batch, course: Course
  ) -> tuple[State, Info]:
    """One step on a batch of target images."""
    ...

  def network(self, state: State) -> Network:
    """The adapted network as it is."""
    ...
