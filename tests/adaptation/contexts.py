"""Contexts of adapters, as the rounds make them."""

import jax
import jax.numpy as jnp

from dfkt_jax import network as net
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.contracts import Batch, Context, Predictions
from dfkt_jax.network import Network


def context(
  recipe: Recipe,
  source: Network | None = None,
  predictions: Predictions | None = None,
  batch: Batch | None = None,
  step: int = 0,
) -> Context:
  """Return the context of a step, or of `init` and `relabel` before it."""
  done = jnp.int32(step)
  return Context(
    teacher=source,  # type: ignore
    predictions=predictions,  # type: ignore
    batch=batch,  # type: ignore
    recipe=recipe,
    progress=done / recipe.steps,
    step=done,
  )


def predict(network: Network, images: jax.Array) -> Predictions:
  """Return predictions for images without padding."""
  logits, taps = net.features(network, images)
  return Predictions(taps["penultimate"], logits, jnp.ones(len(images), bool))
