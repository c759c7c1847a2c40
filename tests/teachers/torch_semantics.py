"""PyTorch networks computed from their raw state dicts: NCHW, OIHW, eps 1e-5.

They repeat the computation of the originals and share nothing with the package,
so an error in a key map or in a linen module shows as a difference. Inputs are
normalized f32[batch, channels, height, width].
"""

import jax
from jax import lax
import jax.numpy as jnp


def akamaster(state, x):
  """Apply resnet20 or a deeper one; the depth is read from the keys."""
  blocks = sum(1 for key in state if key.endswith(".conv1.weight")) // 3
  x = jax.nn.relu(_bn(state, "bn1", _conv(state, "conv1", x)))
  for stage in (1, 2, 3):
    for index in range(blocks):
      stride = 2 if stage > 1 and index == 0 else 1
      name = f"layer{stage}.{index}"
      y = _conv(state, f"{name}.conv1", x, stride)
      y = jax.nn.relu(_bn(state, f"{name}.bn1", y))
      y = _bn(state, f"{name}.bn2", _conv(state, f"{name}.conv2", y))
      if stride == 2:
        quarter = y.shape[1] // 4
        x = x[:, :, ::2, ::2]
        x = jnp.pad(x, ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
      x = jax.nn.relu(x + y)
  return _linear(state, "linear", x.mean((2, 3)))


def usps(state, x):
  x = jax.nn.relu(_bn(state, "features.1", _conv(state, "features.0", x)))
  x = _max_pool(x)
  x = jax.nn.relu(_bn(state, "features.5", _conv(state, "features.4", x)))
  x = _max_pool(x).reshape(x.shape[0], -1)
  x = jax.nn.relu(_linear(state, "classifier.1", x))
  return _linear(state, "classifier.4", x)


def svhn(state, x):
  for block in range(3):
    for conv, bn in ((0, 1), (3, 4)):
      x = _conv(state, f"features.{block}.{conv}", x)
      x = jax.nn.relu(_bn(state, f"features.{block}.{bn}", x))
    x = _max_pool(x)
  x = x.reshape(x.shape[0], -1)
  x = jax.nn.relu(_linear(state, "classifier.1", x))
  return _linear(state, "classifier.4", x)


def mnist(state, x):
  x = _max_pool(jax.nn.relu(_conv(state, "features.0", x)))
  x = _max_pool(jax.nn.relu(_conv(state, "features.3", x)))
  x = x.reshape(x.shape[0], -1)
  x = jax.nn.relu(_linear(state, "classifier.0", x))
  return _linear(state, "classifier.2", x)


def _conv(state, name, x, stride=1):
  x = lax.conv_general_dilated(
    x,
    jnp.asarray(state[f"{name}.weight"]),
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=("NCHW", "OIHW", "NCHW"),
  )
  bias = state.get(f"{name}.bias")
  return x if bias is None else x + _channels(bias)


def _bn(state, name, x):
  mean, var, weight, bias = (
    _channels(state[f"{name}.{part}"])
    for part in ("running_mean", "running_var", "weight", "bias")
  )
  return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias


def _linear(state, name, x):
  return x @ state[f"{name}.weight"].T + state[f"{name}.bias"][None]


def _max_pool(x):
  return lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
  )


def _channels(vector):
  return jnp.asarray(vector)[None, :, None, None]
