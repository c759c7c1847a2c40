"""Contracts of the methods, one a kind.

A method is a frozen dataclass of hyper-parameters with pure functions. Its
fields, with the paper's defaults, are the configuration, the flags and the
record. It holds no arrays, calls no `jit`, prints nothing and reads no file, so
it can be jitted, vmapped over seeds and resumed.

  Synthesizer  makes images
  Selector     chooses from a pool of unlabelled images, on the host
  Learner      what the student learns from a batch
  Adapter      changes a source network
  Oracle       answers for a black box, on the host

A method may have more functions. Each is a small protocol below (`Restarts`,
`Staged`, ...), and `isinstance` tells whether a method has it.

State is a NamedTuple or flax struct of arrays only, checkpointed as it is. Info
is a NamedTuple of f32[] scalars for the log. Randomness comes from the key of
the step alone.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.devices.sharding import shard
from dfkt_jax.errors import UsageError
from dfkt_jax.network import InputSpec, Network

State = Any
Info = Any
PyTree = Any


class Batch(NamedTuple):
  """Images, and what is known of each."""

  images: jax.Array  # f32[batch, height, width, channels] in [0, 1]
  labels: Any = None  # i32[batch]; -1 where an image is of no class
  # f32[batch, classes], the logits of the soft labels an image was made for;
  # None where a method makes images for none.
  soft_labels: Any = None
  rows: Any = None  # i32[batch], an image's number in the target or the memory
  weights: Any = None  # f32[batch], of the examples; None: all equal


def unlabelled(images: jax.Array) -> Batch:
  """Images of no class."""
  return Batch(images, shard(jnp.full(len(images), -1, jnp.int32)))


@struct.dataclass
class Predictions:
  """Predictions of a network for every image of a target.

  BatchNorm uses its running statistics. Rows are sharded over the devices and
  padded so that they divide evenly.
  """

  features: jax.Array  # f32[rows, width], the classifier's input
  logits: jax.Array  # f32[rows, classes]
  valid: jax.Array  # bool[rows]; False: padding


class Context(NamedTuple):
  """Everything that a step may read and never changes.

  It is never checkpointed. A field that a kind of method has no use for is
  None.
  """

  teacher: Network = None  # type: ignore # an adapter's is its source
  learner: Any = None  # the learner's state
  student: Network = None  # type: ignore # the learner's network as it is now
  batch: Batch = None  # type: ignore
  progress: Any = 0.0  # f32[], the share of the steps that is done
  step: Any = 0  # i32[], steps done
  # What `Prepares` and `Summarizes` made once, on the host, by name.
  assets: Any = None
  recipe: Any = None  # batch sizes, steps and rates of the run; static
  # An adapter's, of its network for the whole target: in `init` and `relabel`.
  predictions: Predictions = None  # type: ignore


@runtime_checkable
class Synthesizer(Protocol):
  """Makes images."""

  def init(self, key: jax.Array, context: Context) -> State:
    """The state before the first step."""
    ...

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """One step of synthesis; `context.step` counts over all batches."""
    ...

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """`count` images, or as many as a state of optimized pixels has."""
    ...


@dataclasses.dataclass(frozen=True)
class Scores:
  """Predictions of a teacher for the n images of a pool, in its order."""

  decision: np.ndarray  # i32[n], the top class
  confidence: np.ndarray  # f32[n], its probability
  entropy: np.ndarray  # f32[n], of the prediction, in nats
  features: Any  # f16[n, width] on disk, penultimate; sliced as an array
  classes: int

  def __len__(self) -> int:
    return len(self.decision)


@dataclasses.dataclass(frozen=True)
class Selection:
  """Images of a pool, the best first."""

  index: np.ndarray  # i64[count]
  score: np.ndarray  # f32[count], by which the method ranks


@runtime_checkable
class Selector(Protocol):
  """Chooses from a pool of unlabelled images, on the host."""

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """`count` images of the pool."""
    ...


@runtime_checkable
class Learner(Protocol):
  """Trains a student on batches of images."""

  def init(self, key: jax.Array, student: Network, context: Context) -> State:
    """The state before the first step."""
    ...

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """One step on `context.batch`."""
    ...

  def student(self, state: State) -> Network:
    """The network that is evaluated: an EMA, where the learner keeps one."""
    ...


@runtime_checkable
class Adapter(Protocol):
  """Changes a source network, `context.teacher`, to fit a target."""

  def init(self, key: jax.Array, context: Context) -> State:
    """The state before the first step."""
    ...

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """One step on `context.batch`, images of the target with their rows."""
    ...

  def network(self, state: State) -> Network:
    """The adapted network as it is."""
    ...


@runtime_checkable
class Oracle(Protocol):
  """A black box that answers for images, on the host and never inside `jit`.

  Its cost is the number of images asked, and `budget` is hard: a batch that
  would exceed it is refused before it is asked.
  """

  spec: InputSpec
  budget: int  # images that may be asked in all
  asked: int  # images asked so far

  def ask(self, images: np.ndarray) -> np.ndarray:
    """Answers for u8[n, height, width, channels].

    Returns:
      i32[n] labels, or f32[n, classes] probabilities. A label of -1, or a row
      of NaN, says that the black box refused the image.
    """
    ...


# What a method may have besides.


@runtime_checkable
class Prepares(Protocol):
  """Makes assets once, on the host, before `init`."""

  def prepare(self, rng: np.random.Generator, context: Context) -> PyTree:
    """A dict of arrays, which `context.assets` then has."""
    ...


@runtime_checkable
class Summarizes(Protocol):
  """A selector that makes assets of what the teacher predicts for a pool."""

  def summarize(
    self, rng: np.random.Generator, scores: Scores, selection: Selection
  ) -> PyTree:
    """A dict of arrays, which `context.assets` then has."""
    ...


@runtime_checkable
class Restarts(Protocol):
  """Keeps something of a finished batch of images for the next one."""

  def restart(self, key: jax.Array, state: State, context: Context) -> State:
    """The state before the next batch; without it that is `init`'s."""
    ...


# step(key, state, context) -> (state, info)
Step = Callable[[jax.Array, State, Context], tuple[State, Info]]


@runtime_checkable
class Staged(Protocol):
  """Makes a batch of images by several programs in turn."""

  def stages(self, steps: int) -> Sequence[tuple[Step, int]]:
    """Step functions that share one state, with their counts of `steps`."""
    ...


@runtime_checkable
class Relabels(Protocol):
  """An adapter that uses predictions for the whole target every epoch."""

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """The state for the epoch; `context.predictions` are the network's now."""
    ...


@runtime_checkable
class PredictsOnline(Protocol):
  """An adapter that predicts every image before it learns from it."""

  def online_decisions(self, state: State) -> jax.Array:
    """i32[rows], the decisions made so far; -1: none yet."""
    ...


@runtime_checkable
class ChangesArchitecture(Protocol):
  """An adapter that may train another architecture than the source's."""

  arch: str  # its name; "": the source's


@runtime_checkable
class OpenSet(Protocol):
  """An adapter that can detect images of unknown classes."""

  open_set: bool


@runtime_checkable
class HasBatchSize(Protocol):
  """A synthesizer whose steps work on a number of images of its own."""

  synthesis_batch_size: int


@runtime_checkable
class HasRecipe(Protocol):
  """A method with the recipe of its paper, a class variable."""

  recipe: Any


@runtime_checkable
class HasLearner(Protocol):
  """A source of images with the learner of its paper, a class variable."""

  learner: Any


def step_functions(method: Synthesizer, steps: int) -> list[tuple[Step, int]]:
  """The programs that make one batch in `steps` steps, with their counts.

  Raises:
    UsageError: the counts of the method's stages are not `steps` together.
  """
  if not isinstance(method, Staged):
    return [(method.step, steps)]
  stages = list(method.stages(steps))
  pairs = all(isinstance(stage, tuple) for stage in stages)
  if not pairs or sum(count for _, count in stages) != steps:
    found = [count for _, count in stages] if pairs else "no pairs"
    raise UsageError(
      f"{type(method).__name__}: stages({steps}) returned {found}: return"
      f" (step function, count) pairs whose counts are {steps} together"
    )
  return stages


# Bounds of a setting, written at its field: `share: Annotated[float, Share]`.


@dataclasses.dataclass(frozen=True)
class Bounds:
  """A closed or half-open range of numbers; of tuples, for every item."""

  low: float
  high: float = float("inf")
  above: bool = False  # `low` itself is out of range

  def describe(self) -> str:
    """Return words for a message, such as "a number above 0"."""
    if self.high < float("inf"):
      low = f"above {self.low}, at most" if self.above else f"{self.low} to"
      return f"{low} {self.high}"
    return f"a number above {self.low}" if self.above else f"{self.low} or more"

  def holds(self, value: float) -> bool:
    """Return whether a number is in the range."""
    low = value > self.low if self.above else value >= self.low
    return low and value <= self.high


NonNegative = Bounds(0)
Positive = Bounds(0, above=True)
Share = Bounds(0, 1)
PositiveShare = Bounds(0, 1, above=True)
Seed = Bounds(0, 2**63 - 1)
