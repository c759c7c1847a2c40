"""The gradient of a loss over a whole batch, computed part by part.

The BatchNorm term of DeepInversion is not a mean over images: it compares the
statistics of the whole batch, so gradients of parts do not add up to its
gradient. It is, however, a function of means over images. Write H(x) for all
averages over images that the loss needs (moments of every BatchNorm's input,
the cross-entropy, ...), and L = F(H). For n parts x_i of equal size

  H = 1/n sum_i h(x_i)                                        (first pass)
  dL/dx_i = 1/n <dF/dH (H), dh/dx (x_i)>                      (second pass)

with h the same averages over one part. The second line holds because BatchNorm
uses its running statistics, so no image depends on another before H. The first
pass needs no gradient and hence keeps no activations, and the second pass keeps
those of one part. Memory is therefore that of a part, at the price of one more
forward pass. The result differs from that of the whole batch only in the order
of the sum over images.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax.devices import loops
from dfkt_jax.devices.sharding import shard

PyTree = Any


def value_and_grad(
  loss: Callable[[PyTree], tuple[jax.Array, PyTree]],
  averages: Callable[[jax.Array, jax.Array], PyTree],
  images: jax.Array,
  labels: jax.Array,
  size: int,
) -> tuple[tuple[jax.Array, PyTree], jax.Array]:
  """Return `loss(averages(images, labels))` and its gradient by the images.

  Args:
    loss: F; returns f32[] and auxiliary values.
    averages: h; every leaf of its result is a mean over its images.
    images: f32[batch, ...].
    labels: i32[batch].
    size: images of a part, over all devices; a divisor of the batch, or 0 for
      the whole batch at once.

  Returns:
    The value with the auxiliary values, and the gradient, like `images`.
  """
  if not size or size == len(images):
    whole = lambda images: loss(averages(images, labels))
    return jax.value_and_grad(whole, has_aux=True)(images)
  count = len(images) // size
  parts = _cut(images, count), _cut(labels, count)
  add = lambda one, other: jax.tree.map(jnp.add, one, other)

  def first_pass(total, part):
    return add(total, averages(*shard(part))), ()

  shapes = jax.eval_shape(averages, images[:size], labels[:size])
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  total, _ = loops.scan(first_pass, zeros, parts)
  means = jax.tree.map(lambda leaf: leaf / count, total)
  value_and_aux, slope = jax.value_and_grad(loss, has_aux=True)(means)

  def second_pass(nothing, part):
    images, labels = shard(part)
    _, pull_back = jax.vjp(lambda images: averages(images, labels), images)
    return nothing, pull_back(slope)[0] / count

  _, gradient = loops.scan(second_pass, (), parts)
  return value_and_aux, shard(_join(gradient))


def _cut(x, count):
  """Reshape [batch, ...] to [count, batch / count, ...].

  A part takes every count-th example. A device holds neighboring examples, so
  that each has its share of every part.
  """
  return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _join(x):
  """Invert `_cut`."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
