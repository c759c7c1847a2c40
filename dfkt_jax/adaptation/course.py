"""How a network is adapted: for how long, how fast, and which of its parts.

A network has three parts (`tails.parts`): backbone, bottleneck, classifier.
Methods that need features take what the classifier is given: without a
bottleneck those are the backbone's.
"""

from collections.abc import Hashable
import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment, tails
from dfkt_jax import network as net
from dfkt_jax.distillation import optimizers
from dfkt_jax.network import Network
from dfkt_jax.tails import BACKBONE, BOTTLENECK, CLASSIFIER

FROZEN = "frozen"


class Learner(NamedTuple):
  network: Network
  opt_state: optax.OptState
  step: jax.Array  # i32[], steps done


@dataclasses.dataclass(frozen=True)
class Course:
  """Hyper-parameters; defaults of SHOT on objects (Liang et al., ICML 2020).

  But for augmentation: there images are cropped and mirrored, here they stay as
  they are unless asked for.
  """

  epochs: int = 15  # over the target, where --steps is 0
  steps: int = 0  # in all; 0: so many epochs
  batch_size: int = 64
  optimizer: optimizers.Name = "sgd"
  lr: float = 0.01
  schedule: optimizers.Schedule = "poly"  # by which the rate falls over --steps
  momentum: float = 0.9  # of SGD
  nesterov: bool = True
  weight_decay: float = 1e-3  # added to the gradient, as PyTorch does
  backbone_rate: float = 0.1  # times --lr; 0 freezes
  bottleneck_rate: float = 1.0
  classifier_rate: float = 1.0
  trained: Literal["all", "norm"] = "all"  # norm: BatchNorm's parameters alone
  crop_padding: int = 0  # random crops after zero padding by this many pixels
  flip: bool = False  # mirror each image half of the time

  def over(self, images: int) -> "Course":
    """The course with `steps` filled in for a target of so many images."""
    steps = self.steps or self.epochs * self.epoch(images)
    return dataclasses.replace(self, steps=steps)

  def epoch(self, images: int) -> int:
    """Steps that see every one of so many images about once."""
    return -(-images // self.batch_size)

  def init(self, network: Network) -> Learner:
    opt_state = self._optimizer(network).init(network.params)
    return Learner(network, opt_state, jnp.int32(0))

  def augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
    return augment.crop_and_flip(key, images, self.crop_padding, self.flip)

  def update(
    self, learner: Learner, gradient: net.PyTree, variables: dict
  ) -> Learner:
    """One optimiser step; `variables` bring the statistics of the forward pass.

    Frozen parts stay as they are, weight decay included.
    """
    network, params = learner.network, learner.network.params
    updates, opt_state = self._optimizer(network).update(
      gradient, learner.opt_state, params
    )
    network = dataclasses.replace(network, variables=variables)
    network = network.with_params(optax.apply_updates(params, updates))
    return Learner(network, opt_state, learner.step + 1)

  def progress(self, learner: Learner) -> jax.Array:
    """The share of the steps that is done, f32[] in [0, 1]."""
    return learner.step / self.steps

  def make_optimizer(self, rate: float = 1.0) -> optax.GradientTransformation:
    """The optimiser at so many times `lr`, for what a method has besides."""
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
    """As `tails.parts`, and what the course leaves alone is "frozen"."""
    parts = tails.parts(network)
    if self.trained == "all":
      return parts
    keep = lambda norm, name: name if norm else FROZEN
    return jax.tree.map(keep, net.batch_norm_params(network), parts)
