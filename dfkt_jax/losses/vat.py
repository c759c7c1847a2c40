"""Virtual adversarial training: predictions stay where an image moves a little.

  r = radius argmax_{|d| = 1} KL(p(x) || p(x + radius d))
  L = mean KL(p(x) || p(x + r))

Miyato et al., "Virtual Adversarial Training: A Regularization Method for
Supervised and Semi-Supervised Learning", TPAMI 2018. The direction is found by
one power iteration from a random one. p(x) and r are constants to the gradient.
The length |r| is that of an image as a whole, on the scale of the images.

`answer` is what the classifier does: f32[batch, height, width, channels] ->
f32[batch, classes] logits. What is random in it must be the same at each call.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dfkt_jax import parallel
from dfkt_jax.losses import classification
from dfkt_jax.losses.relation import normalise

Answer = Callable[[jax.Array], jax.Array]

PROBE = 1e-2  # length at which the gradient is taken; f32 needs no less


def perturbation(
  key: jax.Array, answer: Answer, images: jax.Array, radius: float
) -> jax.Array:
  """r, in the shape of `images`, every image's of length `radius`.

  Zero where the prediction does not depend on the image.
  """
  noise = parallel.split(jax.random.normal(key, images.shape))
  start = jax.lax.stop_gradient(answer(images))

  def divergence(r):
    return classification.kl(start, answer(images + r))

  gradient = jax.grad(divergence)(PROBE * _unit(noise))
  return jax.lax.stop_gradient(radius * _unit(gradient))


def loss(
  answer: Answer, images: jax.Array, r: jax.Array, logits: jax.Array
) -> jax.Array:
  """L, where `logits` are what `answer` says of `images`."""
  return classification.kl(jax.lax.stop_gradient(logits), answer(images + r))


def _unit(x):
  """Every image of x at length 1, however short it was; zero stays zero."""
  flat = x.reshape(len(x), -1)
  # A sure prediction's gradient is so small that its square is zero in f32.
  largest = jnp.abs(flat).max(1, keepdims=True)
  return normalise(flat / jnp.maximum(largest, 1e-30)).reshape(x.shape)
