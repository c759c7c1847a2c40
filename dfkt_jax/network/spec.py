"""The input of a network, and the task that it was trained for."""

import dataclasses

import jax
import jax.numpy as jnp

from dfkt_jax.network.task import Task


@dataclasses.dataclass(frozen=True)
class InputSpec:
  """The shape and scale of a network's input, and its task (hashable).

  `mean` and `std` are per channel, of images in [0, 1]. `crop` is the central
  share of a photograph's side on which the network's authors evaluate it. It
  applies to files of any size; images of the network's own size are shown
  whole.
  """

  height: int
  width: int
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  task: Task
  crop: float = 1.0

  def __post_init__(self):
    if not isinstance(self.task, Task):
      raise ValueError(
        f"InputSpec.task is {self.task!r}: give a task, such as"
        " Classification(10)"
      )
    for name in ("mean", "std"):
      values = getattr(self, name)
      if len(values) != self.channels:
        raise ValueError(
          f"InputSpec.{name} has {len(values)} values for"
          f" {self.channels} channels"
        )
    if not 0.0 < self.crop <= 1.0:
      raise ValueError(f"InputSpec.crop is {self.crop}, not in (0, 1]")

  @property
  def classes(self) -> int:
    """Return the number of outputs of the task."""
    return self.task.outputs

  @property
  def class_names(self) -> tuple[str, ...]:
    """Return the names of the outputs in the order of the logits, or ()."""
    return self.task.names

  @property
  def shape(self) -> tuple[int, int, int]:
    """Return (height, width, channels)."""
    return (self.height, self.width, self.channels)

  def normalize(self, images: jax.Array) -> jax.Array:
    """Map images in [0, 1] to the scale that the network was trained on."""
    mean, std = self._moments(images.ndim)
    return (images - mean) / std

  def denormalize(self, x: jax.Array) -> jax.Array:
    """Invert `normalize`."""
    mean, std = self._moments(x.ndim)
    return x * std + mean

  def _moments(self, ndim):
    shape = (1,) * (ndim - 1) + (self.channels,)
    return (
      jnp.asarray(self.mean, jnp.float32).reshape(shape),
      jnp.asarray(self.std, jnp.float32).reshape(shape),
    )
