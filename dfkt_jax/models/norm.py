"""BatchNorm that reports the statistics of its input."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def sow_latest(module: nn.Module, collection: str, name: str, value: Any):
  """Sow `value` itself, in place of a tuple of all sown values."""
  module.sow(
    collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None
  )


class BatchNorm(nn.BatchNorm):
  """A `nn.BatchNorm` that sows mean and variance of its input.

  The sown collection, "bn_inputs", has the structure of "batch_stats", so that
  a single `jax.tree.map` compares them. Statistics are f32, biased, and over
  all axes but the last. They are only computed where the collection is mutable.

  `momentum` follows linen (the share that is kept): 0.9, which is 0.1 in
  PyTorch.
  Deviation from PyTorch: the running variance moves towards the biased batch
  variance, PyTorch's towards the unbiased one, which is n / (n - 1) of it.
  """

  momentum: float = 0.9

  @nn.compact
  def __call__(self, x, use_running_average=None, **kwargs):
    if self.is_mutable_collection("bn_inputs") and not self.is_initializing():
      mean, variance = self._input_statistics(x.astype(jnp.float32))
      sow_latest(self, "bn_inputs", "mean", mean)
      sow_latest(self, "bn_inputs", "var", variance)
    return super().__call__(
      x, use_running_average=use_running_average, **kwargs
    )

  def _input_statistics(self, x):
    """Return mean and variance from a single pass over x.

    var[x] = E[(x - c)^2] - (E[x] - c)^2, with the running mean as c, so that
    the terms are not two large and nearly equal numbers. The error in f32 is
    about 1e-7 (E[x] - c)^2, which is small beside the stored variances that the
    result is compared with. The textbook formula needs the mean first, and its
    gradient has another sum over x, which cancels.
    """
    center = jax.lax.stop_gradient(self.get_variable("batch_stats", "mean"))
    axes = tuple(range(x.ndim - 1))
    offset = x - jnp.expand_dims(center, axes)
    mean = offset.mean(axes)
    square = (offset * offset).mean(axes)
    return center + mean, jnp.maximum(square - mean * mean, 0.0)
