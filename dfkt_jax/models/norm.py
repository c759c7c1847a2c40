"""BatchNorm that reports what it is given."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def keep_latest(module: nn.Module, collection: str, name: str, value: Any):
  """Sows `value` as itself rather than as a tuple of all that was sown."""
  module.sow(
    collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None
  )


class BatchNorm(nn.BatchNorm):
  """`nn.BatchNorm` that sows mean and variance of its input.

  The sown collection, "bn_inputs", has the structure of "batch_stats", so that
  matching one to the other is a single `jax.tree.map`. Statistics are f32,
  biased, and over all axes but the last; nothing is computed unless somebody
  asks for the collection.

  `momentum` is linen's (the share that is kept), 0.9, which PyTorch calls 0.1.
  Deviation from PyTorch: the running variance moves towards the biased batch
  variance, PyTorch's towards the unbiased one; they differ by n / (n - 1).
  """

  momentum: float = 0.9

  @nn.compact
  def __call__(self, x, use_running_average=None, **kwargs):
    if self.is_mutable_collection("bn_inputs") and not self.is_initializing():
      mean, variance = self._of_input(x.astype(jnp.float32))
      keep_latest(self, "bn_inputs", "mean", mean)
      keep_latest(self, "bn_inputs", "var", variance)
    return super().__call__(
      x, use_running_average=use_running_average, **kwargs
    )

  def _of_input(self, x):
    """Mean and variance, from one look at x.

    var[x] = E[(x - c)^2] - (E[x] - c)^2, with the running mean as c, lest the
    two be large and alike: f32 leaves an error of some 1e-7 (E[x] - c)^2, which
    is small beside the stored variances that this one is compared with. The
    textbook's variance needs the mean before it begins, and in its gradient a
    sum over x that comes to nothing.
    """
    near = jax.lax.stop_gradient(self.get_variable("batch_stats", "mean"))
    axes = tuple(range(x.ndim - 1))
    away = x - jnp.expand_dims(near, axes)
    mean = away.mean(axes)
    square = (away * away).mean(axes)
    return near + mean, jnp.maximum(square - mean * mean, 0.0)
