"""The recipe of an adaptation: how long, how fast and which parts learn.

A network has three parts (`network.layers.parts`): backbone, bottleneck and
classifier. Methods that need features use the input of the classifier, which is
the output of the bottleneck, or of the backbone where there is no bottleneck.
"""

from collections.abc import Hashable
import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import NonNegative
from dfkt_jax.distillation import optimizers
from dfkt_jax.network import Network, layers
from dfkt_jax.network.layers import BACKBONE, BOTTLENECK, CLASSIFIER

FROZEN = "frozen"


class TrainState(NamedTuple):
  """A network that learns by gradients."""

  network: Network
  opt_state: optax.OptState
  step: jax.Array  # i32[], steps done


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Recipe:
  """Hyper-parameters; the defaults are SHOT's for objects.

  Liang et al., ICML 2020. One default differs: SHOT crops and mirrors images,
  here they stay as they are unless `crop_padding` and `flip` say otherwise.
  """

  epochs: Annotated[int, NonNegative] = 15  # over the target; see --steps
  steps: Annotated[int, NonNegative] = 0  # in total; 0: as many as --epochs has
  batch_size: Annotated[int, NonNegative] = 64
  optimizer: optimizers.Name = "sgd"
  lr: Annotated[float, NonNegative] = 0.01
  schedule: optimizers.Schedule = "poly"  # of the learning rate, over --steps
  momentum: Annotated[float, NonNegative] = 0.9  # of SGD
  nesterov: bool = True
  # Added to the gradient, as PyTorch does.
  weight_decay: Annotated[float, NonNegative] = 1e-3
  backbone_rate: Annotated[float, NonNegative] = 0.1  # times --lr; 0 freezes
  bottleneck_rate: Annotated[float, NonNegative] = 1.0
  classifier_rate: Annotated[float, NonNegative] = 1.0
  trained: Literal["all", "norm"] = "all"  # norm: only BatchNorm's parameters
  # Random crops after zero padding by this number of pixels.
  crop_padding: Annotated[int, NonNegative] = 0
  flip: bool = False  # mirror each image with probability one half

  def with_steps_for(self, images: int) -> "Recipe":
    """Return the recipe with `steps` filled in for a target of N images."""
    steps = self.steps or self.epochs * self.steps_per_epoch(images)
    return dataclasses.replace(self, steps=steps)

  def steps_per_epoch(self, images: int) -> int:
    """Return the number of steps that show each of N images about once."""
    return -(-images // self.batch_size)

  def init(self, network: Network) -> TrainState:
    """Return the state before the first step."""
    opt_state = self._optimizer(network).init(network.params)
    return TrainState(network, opt_state, jnp.int32(0))

  def augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Crop and mirror images as `crop_padding` and `flip` say."""
    return augment.crop_and_flip(key, images, self.crop_padding, self.flip)

  def update(
    self, train: TrainState, gradient: net.PyTree, variables: dict
  ) -> TrainState:
    """Return the state after one optimizer step.

    Frozen parts stay as they are; weight decay does not move them either.

    Args:
      gradient: of the loss, in the structure of `params`.
      variables: of the forward pass, with the BatchNorm statistics to keep.
    """
    network, params = train.network, train.network.params
    updates, opt_state = self._optimizer(network).update(
      gradient, train.opt_state, params
    )
    network = dataclasses.replace(network, variables=variables)
    network = network.with_params(optax.apply_updates(params, updates))
    return TrainState(network, opt_state, train.step + 1)

  def make_optimizer(self, rate: float = 1.0) -> optax.GradientTransformation:
    """Return the optimizer at `rate` times `lr`, for any parameters."""
    return optimizers.make(
      self.optimizer,
      self.lr * rate,
      self.steps,
      self.momentum,
      self.weight_decay,
      self.schedule,
      self.nesterov,
    )

  def _optimizer(self, network: Network) -> optax.GradientTransformation:
    rates = {
      BACKBONE: self.backbone_rate,
      BOTTLENECK: self.bottleneck_rate,
      CLASSIFIER: self.classifier_rate,
      FROZEN: 0.0,
    }
    groups: dict[Hashable, optax.GradientTransformation] = {
      name: self.make_optimizer(rate) if rate else optax.set_to_zero()
      for name, rate in rates.items()
    }
    return optax.multi_transform(groups, self.parts(network))

  def parts(self, network: Network) -> net.PyTree:
    """Return `layers.parts`, with "frozen" for what `trained` leaves out."""
    parts = layers.parts(network)
    if self.trained == "all":
      return parts
    keep = lambda norm, name: name if norm else FROZEN
    return jax.tree.map(keep, net.batch_norm_params(network), parts)
