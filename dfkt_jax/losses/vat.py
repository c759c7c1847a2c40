"""Virtual adversarial training: keep predictions where an image moves a little.

  r = radius argmax_{|d| = 1} KL(p(x) || p(x + radius d))
  L = KL(p(x) || p(x + r))

Miyato et al., "Virtual Adversarial Training: A Regularization Method for
Supervised and Semi-Supervised Learning", TPAMI 2018. The direction is found by
one power iteration from a random one. p(x) and r are constants to the gradient.
The length |r| is that of an image as a whole, on the scale of the images.

`predict` is the classifier: f32[batch, height, width, channels] -> f32[batch,
classes] logits. Its randomness must be the same at each call.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dfkt_jax.devices.sharding import shard
from dfkt_jax.losses import classification
from dfkt_jax.losses.relation import normalize

Predict = Callable[[jax.Array], jax.Array]

PROBE = 1e-2  # length at which the gradient is taken; f32 needs no shorter one


def perturbation(
  key: jax.Array, predict: Predict, images: jax.Array, radius: float
) -> jax.Array:
  """Return r, in the shape of `images`, each image's of length `radius`.

  It is zero where the prediction does not depend on the image.
  """
  noise = shard(jax.random.normal(key, images.shape))
  start = jax.lax.stop_gradient(predict(images))

  def divergence(r):
    return classification.kl(start, predict(images + r)).mean()

  gradient = jax.grad(divergence)(PROBE * _unit(noise))
  return jax.lax.stop_gradient(radius * _unit(gradient))


def loss(
  predict: Predict, images: jax.Array, r: jax.Array, logits: jax.Array
) -> jax.Array:
  """Return L per example, f32[batch]; `logits` are those of `images`."""
  chex.assert_equal_shape([images, r])
  return classification.kl(jax.lax.stop_gradient(logits), predict(images + r))


def _unit(x):
  """Scale images to length 1, however short they are; zero stays zero."""
  flat = x.reshape(len(x), -1)
  # The gradient of a sure prediction is so small that its square is 0 in f32.
  largest = jnp.abs(flat).max(1, keepdims=True)
  return normalize(flat / jnp.maximum(largest, 1e-30)).reshape(x.shape)
