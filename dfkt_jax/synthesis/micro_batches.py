"""The gradient of a loss over a whole batch, a part of the batch at a time.

The BatchNorm term of DeepInversion is no mean over images: it compares the
statistics of the whole batch, so gradients of parts do not add up to its own.
It is, though, a function of means over images. Write H(x) for all that the loss
looks at, each an average over images (moments of every BatchNorm's input, the
cross-entropy, ...), and L = F(H). Of n parts x_i of equal size

  H = 1/n sum_i h(x_i)                                        (first pass)
  dL/dx_i = 1/n <dF/dH (H), dh/dx (x_i)>                      (second pass)

with h the same averages over one part. The second line holds because BatchNorm
runs on its running statistics, so no image depends on another before H. The
first pass needs no gradient and hence keeps no activations, the second one
those of a part: memory is that of a part, and the price one more forward pass.
The sum over images is that of the whole batch in another order, nothing else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax import loops, parallel

PyTree = Any


def value_and_grad(
  loss: Callable[[PyTree], tuple[jax.Array, PyTree]],
  averages: Callable[[jax.Array, jax.Array], PyTree],
  images: jax.Array,
  labels: jax.Array,
  size: int,
) -> tuple[tuple[jax.Array, PyTree], jax.Array]:
  """Value, whatever else, and gradient of `loss(averages(images, labels))`.

  Args:
    loss: F; answers f32[] and whatever else.
    averages: h; every leaf of its answer is a mean over the images given.
    images: f32[batch, ...], which the gradient is for.
    labels: i32[batch].
    size: images of a part, over all devices, which divides the batch; 0 takes
      the batch whole.
  """
  if not size or size == len(images):
    whole = lambda images: loss(averages(images, labels))
    return jax.value_and_grad(whole, has_aux=True)(images)
  count = len(images) // size
  parts = _cut(images, count), _cut(labels, count)
  add = lambda one, other: jax.tree.map(jnp.add, one, other)

  def first_pass(total, part):
    return add(total, averages(*parallel.split(part))), ()

  shapes = jax.eval_shape(averages, images[:size], labels[:size])
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  total, _ = loops.over(first_pass, zeros, parts)
  means = jax.tree.map(lambda leaf: leaf / count, total)
  value_and_aux, slope = jax.value_and_grad(loss, has_aux=True)(means)

  def second_pass(nothing, part):
    images, labels = parallel.split(part)
    _, pull_back = jax.vjp(lambda images: averages(images, labels), images)
    return nothing, pull_back(slope)[0] / count

  _, gradient = loops.over(second_pass, (), parts)
  return value_and_aux, parallel.split(_join(gradient))


def _cut(x, count):
  """[batch, ...] -> [count, batch / count, ...], every count-th a part.

  So that each device, which holds neighbours, has its share of every part.
  """
  return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _join(x):
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
