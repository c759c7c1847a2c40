"""Training on labeled images: teachers, and the student-with-data baseline.

  L = CE(N(x), y)

with labels y smoothed by `label_smoothing` (Szegedy et al., CVPR 2016).

`SFDA` is the recipe of source models for later adaptation (SHOT, Liang et al.,
ICML 2020): smoothed labels, SGD with Nesterov momentum and the poly schedule,
an architecture with a bottleneck and a weight-normalized classifier
(`+bottleneck`, shot-lenet, shot-dtn), and the last iterate. SHOT's rates are
0.01 for digits, there with a factor of 1.0 for the backbone too, and 0.001 for
VisDA.
"""

from collections.abc import Hashable, Mapping
import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import augment
from dfkt_jax import network as net
from dfkt_jax.contracts import NonNegative, Positive
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation import optimizers
from dfkt_jax.losses import classification
from dfkt_jax.network import Network
from dfkt_jax.network.layers import BACKBONE, BOTTLENECK, CLASSIFIER, parts


class State(NamedTuple):
  network: Network
  opt_state: optax.OptState


class Info(NamedTuple):
  """The loss and the accuracy of a step."""

  cross_entropy: jax.Array
  accuracy: jax.Array  # of the augmented batch, in [0, 1]


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Hyper-parameters; defaults suit CIFAR-sized residual networks."""

  steps: Annotated[int, Positive] = 40_000  # of the optimizer
  batch_size: Annotated[int, Positive] = 256
  optimizer: optimizers.Name = "sgd"
  # falls by the schedule over --steps
  lr: Annotated[float, NonNegative] = 0.1
  schedule: optimizers.Schedule = "cosine"  # poly: (1 + 10 t / T)^-0.75
  momentum: Annotated[float, NonNegative] = 0.9  # of SGD
  nesterov: bool = False
  # factor of --lr before a bottleneck
  backbone_rate: Annotated[float, NonNegative] = 1.0
  # added to the gradient, as PyTorch does
  weight_decay: Annotated[float, NonNegative] = 5e-4
  label_smoothing: Annotated[float, NonNegative] = 0.0  # 0: none
  # pixels of zero padding before random crops
  crop_padding: Annotated[int, NonNegative] = 4
  flip: bool = True  # mirror each image with probability one half
  statistics: net.Statistics = "global"  # of BatchNorm

  def init(self, network: Network) -> State:
    """Return the state before the first step."""
    return State(network, self._optimizer(network).init(network.params))

  def step(
    self,
    key: jax.Array,
    state: State,
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
  ) -> tuple[State, Info]:
    """Take one optimizer step on a batch.

    Args:
      key: the key of the run, not of the step.
      step: the number of the step, from 0.
      images: u8[batch, height, width, channels].
      labels: i32[batch].
    """
    _, step_key = jax.random.split(key)
    batch = shard(images).astype(jnp.float32) / 255
    augment_key, dropout_key = jax.random.split(
      jax.random.fold_in(step_key, step)
    )
    batch = augment.crop_and_flip(
      augment_key, batch, self.crop_padding, self.flip
    )
    params = state.network.params
    gradient, (variables, info) = jax.grad(self._loss, has_aux=True)(
      params, state.network, batch, labels, dropout_key
    )
    updates, opt_state = self._optimizer(state.network).update(
      gradient, state.opt_state, params
    )
    network = dataclasses.replace(state.network, variables=variables)
    network = network.with_params(optax.apply_updates(params, updates))
    return State(network, opt_state), info

  def batch(
    self, key: jax.Array, step: jax.Array, images: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Return the batch of step `step` of a training set on the device.

    Every epoch goes through the set in a new order and drops the images that do
    not fill a batch. `key` is the key of the run, as in `step`.
    """
    order_key, _ = jax.random.split(key)
    index = _batch_index(order_key, step, len(images), self.batch_size)
    return images[index], labels[index]

  def _loss(self, params, network, images, labels, key):
    logits, variables = net.train_logits(
      network.with_params(params), images, key, self.statistics
    )
    targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[1]), self.label_smoothing
    )
    loss = classification.soft_cross_entropy(logits, targets).mean()
    decisions = network.spec.task.decisions(logits)
    accuracy = (decisions == labels).mean()
    return loss, (variables, Info(loss, accuracy))

  def _optimizer(self, network):
    make = lambda lr: optimizers.make(
      self.optimizer,
      lr,
      self.steps,
      self.momentum,
      self.weight_decay,
      self.schedule,
      self.nesterov,
    )
    if self.backbone_rate == 1.0:
      return make(self.lr)
    rates = {BACKBONE: self.backbone_rate, BOTTLENECK: 1.0, CLASSIFIER: 1.0}
    groups: dict[Hashable, optax.GradientTransformation] = {
      part: make(self.lr * rate) for part, rate in rates.items()
    }
    return optax.multi_transform(groups, parts(network))


def _batch_index(key, step, count, batch_size):
  batches = count // batch_size
  order = jax.random.permutation(
    jax.random.fold_in(key, step // batches), count
  )
  first = step % batches * batch_size
  return jax.lax.dynamic_slice(order, (first,), (batch_size,))


SFDA = Supervised(
  batch_size=64,
  lr=0.01,
  schedule="poly",
  nesterov=True,
  backbone_rate=0.1,
  weight_decay=1e-3,
  label_smoothing=0.1,
  crop_padding=0,
  flip=False,
)
RECIPES: Mapping[str, Supervised] = {
  "supervised": Supervised(),
  "sfda": SFDA,
}
