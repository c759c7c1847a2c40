"""TENT: minimize the entropy of predictions by BatchNorm's scale and bias.

  L = mean H(p)

Wang et al., "Tent: Fully Test-time Adaptation by Entropy Minimization", ICLR
2021, equation 1. It is online: every image is predicted before the update of
its batch, with BatchNorm on the batch's own statistics (as released).
`State.decisions` keeps these predictions. The last batch is filled up with
images seen before. With `episodic=True` every batch starts from the source.

Deviations: all BatchNorms take part, that of a bottleneck too, in released code
those of convolutions only; running statistics follow the target, so that the
network can be used afterwards, in released code there are none.

TENT can collapse: after too many steps, at too high a rate, with small batches
or with images sorted by class, all predictions may end in one class. `dfkt
adapt` warns of that.
"""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.ada_bn import require_batch_norm
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, Positive
from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import information
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network


class State(NamedTuple):
  """A network, and its decisions so far."""

  train: TrainState
  start: TrainState | None  # the start of every episode; None without episodes
  decisions: jax.Array  # i32[rows], made online; -1: none yet


class Info(NamedTuple):
  """The loss, which is the entropy, and the marginal entropy."""

  entropy: jax.Array
  marginal_entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class Tent:
  """Hyper-parameters; the defaults are the paper's for CIFAR-10-C."""

  steps_per_batch: Annotated[int, Positive] = 1
  episodic: bool = False  # start every batch from the source

  recipe: ClassVar[Recipe] = Recipe(
    epochs=1,
    batch_size=200,
    optimizer="adam",
    lr=1e-3,
    schedule="constant",
    weight_decay=0.0,
    backbone_rate=1.0,
    trained="norm",
  )

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, without decisions.

    Raises:
      UsageError: the source has no BatchNorm.
    """
    require_batch_norm(context.teacher, "tent")
    train = context.recipe.init(context.teacher)
    rows = len(context.predictions.logits)
    decisions = shard(jnp.full(rows, -1, jnp.int32))
    return State(train, train if self.episodic else None, decisions)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take the steps of a batch, and keep the predictions of the last one."""
    rows = context.batch.rows
    train = state.train
    if state.start is not None:
      train = state.start._replace(step=train.step)
    for _ in range(self.steps_per_batch):
      train, logits = self._update(train, context)
    info = Info(
      information.entropy(logits).mean(), information.marginal_entropy(logits)
    )
    # The last batch may repeat images; their first decision stays.
    first = feature_bank.read(state.decisions, rows) < 0
    rows = jnp.where(first, rows, len(state.decisions))
    decisions = train.network.spec.task.decisions(logits)
    decisions = feature_bank.write(state.decisions, rows, decisions)
    if state.start is not None:
      train = state.start._replace(step=train.step)
    return State(train, state.start, decisions), info

  def network(self, state: State) -> Network:
    """Return the network as it is; the source, where batches are episodes."""
    return state.train.network

  def online_decisions(self, state: State) -> jax.Array:
    """Return decisions i32[rows] made before learning; -1: none yet."""
    return state.decisions

  def _update(self, train, context):
    """Return the train state after a step, and the logits before it."""
    network = train.network

    def loss(params):
      # Without dropout, because these are predictions.
      logits, variables = net.train_logits(
        network.with_params(params), context.batch.images, None
      )
      return information.entropy(logits).mean(), (variables, logits)

    gradient, (variables, logits) = jax.grad(loss, has_aux=True)(network.params)
    return context.recipe.update(train, gradient, variables), logits
