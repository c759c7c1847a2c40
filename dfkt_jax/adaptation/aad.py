"""AaD: attract what is near and disperse the rest of the batch.

  L = - mean_i sum_k <p_i, s_k> + a_t mean_i sum_{j != i} <p_i, p_j>
  a_t = a_0 (1 + 10 t / T)^(-decay)

Yang et al., "Attracting and Dispersing: A Simple Approach for Source-free
Domain Adaptation", NeurIPS 2022, equations 5 and 6. k runs over the K images
with the features nearest to those of image i by cosine; s are predictions from
a bank, constants to the gradient. The second sum runs over the batch, so the
paper's values of a_0 hold for its batch size, 64. Gradients flow through both
factors of the second sum.

The banks are those of NRC. They are written before neighbors are looked up,
and the features in them are computed without dropout.
"""

import dataclasses
import functools
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.adaptation import nrc
from dfkt_jax.adaptation.nrc import NRC, State
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.contracts import Context, NonNegative, Positive
from dfkt_jax.memory import feature_bank
from dfkt_jax.network import Network


class Info(NamedTuple):
  """The loss and its terms."""

  loss: jax.Array
  attraction: jax.Array  # as in the loss, with its sign
  dispersion: jax.Array  # before a_t
  weight: jax.Array  # a_t


@dataclasses.dataclass(frozen=True)
class AaD:
  """Hyper-parameters; the defaults are the paper's for VisDA."""

  neighbours: Annotated[int, Positive] = 5  # K
  dispersion_weight: Annotated[float, NonNegative] = 1.0  # a_0
  # With a decay of 0, a_t stays at a_0.
  dispersion_decay: Annotated[float, NonNegative] = 5.0

  recipe: ClassVar[Recipe] = Recipe(lr=1e-3)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return the source, and banks of its features and predictions."""
    return NRC().init(key, context)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Write the batch to the banks and take a step down the loss."""
    loss = functools.partial(self.loss, progress=context.progress)
    return nrc.descend(key, state, context, loss)

  def loss(
    self, logits: jax.Array, rows: jax.Array, state: State, progress: jax.Array
  ) -> Info:
    """Return the terms for f32[batch, classes] logits and i32[batch] rows."""
    p = jax.nn.softmax(logits)
    near = feature_bank.nearest(
      feature_bank.read(state.features, rows),
      state.features,
      self.neighbours,
      own=rows,
      valid=state.valid,
    )
    predictions = feature_bank.read(state.predictions, near)
    attraction = -jnp.einsum("bc,bkc->b", p, predictions).mean()
    similarity = p @ p.T
    dispersion = (similarity.sum(1) - jnp.diagonal(similarity)).mean()
    weight = self.dispersion_weight * jnp.power(
      1.0 + 10.0 * progress, -self.dispersion_decay
    )
    total = attraction + weight * dispersion
    return Info(total, attraction, dispersion, weight)

  def network(self, state: State) -> Network:
    """Return the network as it is."""
    return state.train.network
