"""NRC: neighbors agree, and reciprocal ones agree most.

  L = - mean_i sum_k A_ik <p_i, s_k> - r mean_i sum_k sum_m <p_i, s_m>
      - H(mean p)

Yang et al., "Exploiting the Intrinsic Neighborhood Structure for Source-free
Domain Adaptation", NeurIPS 2021. k runs over the K images with the features
nearest to those of image i by cosine, m over the M images nearest to each k
(the expanded neighbors); s are predictions from a bank, constants to the
gradient. A is 1 where i is among the nearest of k, and r = 0.1 elsewhere.

Rows of the batch are written to the banks before neighbors are looked up. An
image is not its own neighbor but stays among its expanded neighbors, which
stands in for the paper's self term, as in released code. Deviation: the banks
start from the source's predictions for images as they are, in released code for
augmented ones. There is no dropout: the paper's networks have none, and
features of which half are zero have other neighbors. `weights="released"` sets
every A to r, as the released VisDA script does by mistake; the paper's figure
for VisDA comes from that script.
"""

from collections.abc import Callable
import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe, TrainState
from dfkt_jax.contracts import Context, NonNegative, Positive
from dfkt_jax.losses import information
from dfkt_jax.losses.relation import normalize
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network


class State(NamedTuple):
  """A network, and banks with a row for every image of the target."""

  train: TrainState
  features: jax.Array  # f32[rows, width], of length 1
  predictions: jax.Array  # f32[rows, classes]
  valid: jax.Array  # bool[rows]


class Info(NamedTuple):
  """The loss and its terms."""

  loss: jax.Array
  neighbours: jax.Array  # as in the loss, with its sign
  expanded: jax.Array  # as in the loss, with its sign
  marginal_entropy: jax.Array
  reciprocal: jax.Array  # share of neighbors


@dataclasses.dataclass(frozen=True)
class NRC:
  """Hyper-parameters; the defaults are the paper's for VisDA."""

  neighbours: Annotated[int, Positive] = 5  # K
  expanded_neighbours: Annotated[int, NonNegative] = 5  # M
  base_affinity: Annotated[float, NonNegative] = 0.1  # r
  diversity_weight: Annotated[float, NonNegative] = 1.0  # of H(mean p)
  weights: Literal["paper", "released"] = "paper"  # the values of A

  recipe: ClassVar[Recipe] = Recipe(lr=1e-3)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, and banks of its features and predictions."""
    predictions = context.predictions
    return State(
      context.recipe.init(context.teacher),
      normalize(predictions.features),
      jax.nn.softmax(predictions.logits),
      predictions.valid,
    )

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Write the batch to the banks and take a step down the loss."""
    return descend(key, state, context, self.loss)

  def loss(self, logits: jax.Array, rows: jax.Array, state: State) -> Info:
    """Return the terms for f32[batch, classes] logits and i32[batch] rows."""
    p = jax.nn.softmax(logits)
    find = lambda rows, count: feature_bank.nearest(
      feature_bank.read(state.features, rows),
      state.features,
      count,
      own=rows,
      valid=state.valid,
    )
    near = find(rows, self.neighbours)
    further = find(near.reshape(-1), self.expanded_neighbours)
    further = further.reshape(*near.shape, -1)
    reciprocal = (further == rows[:, None, None]).any(-1)
    affinity = jnp.where(reciprocal, 1.0, self.base_affinity)
    if self.weights == "released":
      affinity = jnp.full_like(affinity, self.base_affinity)
    read = lambda rows: feature_bank.read(state.predictions, rows)
    agreement = jnp.einsum("bc,bkc->bk", p, read(near))
    neighbours = -(affinity * agreement).sum(1).mean()
    agreement = jnp.einsum("bc,bkmc->bkm", p, read(further))
    expanded = -self.base_affinity * agreement.sum((1, 2)).mean()
    marginal = information.marginal_entropy(logits)
    total = neighbours + expanded - self.diversity_weight * marginal
    return Info(total, neighbours, expanded, marginal, reciprocal.mean())

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.train.network


def descend(
  key: jax.Array,
  state: State,
  context: Context,
  loss: Callable[[jax.Array, jax.Array, State], Any],
) -> tuple[State, Any]:
  """Take a step down loss(logits, rows, state), an Info with a field `loss`.

  The banks of the state that `loss` receives include the batch.
  """
  recipe, batch = context.recipe, context.batch
  images = recipe.augment(key, batch.images)
  network = state.train.network

  def total(params):
    logits, taps, variables = net.train_features(
      network.with_params(params), images, None
    )
    written = write(state, batch.rows, taps["penultimate"], logits)
    info = loss(logits, batch.rows, written)
    return info.loss, (variables, written, info)

  gradient, (variables, written, info) = jax.grad(total, has_aux=True)(
    network.params
  )
  train = recipe.update(state.train, gradient, variables)
  return written._replace(train=train), info


def write(
  state: State, rows: jax.Array, features: jax.Array, logits: jax.Array
) -> State:
  """Return the state with a batch's features and predictions in its banks."""
  features, logits = jax.lax.stop_gradient((features, logits))
  return state._replace(
    features=feature_bank.write(state.features, rows, normalize(features)),
    predictions=feature_bank.write(
      state.predictions, rows, jax.nn.softmax(logits)
    ),
  )
