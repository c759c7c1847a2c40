"""Small networks on vectors, such as the features of a classifier."""

from flax import linen as nn
import jax


class PrototypeGenerator(nn.Module):
  """A generator of features f32[batch, width] from noise and labels.

  Noise is f32[batch, latent], labels are i32[batch]. Noise times an embedding
  of the label passes through two linear layers.
  """

  classes: int
  width: int
  hidden: int

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array) -> jax.Array:
    unit = nn.initializers.normal(1.0)
    table = self.param("embedding", unit, (self.classes, z.shape[1]))
    x = nn.Dense(self.hidden, name="linear1")(z * table[labels])
    return nn.Dense(self.width, name="linear2")(nn.leaky_relu(x, 0.2))


class Projection(nn.Module):
  """A perceptron of one hidden layer, f32[..., features] to f32[..., width]."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(nn.Dense(x.shape[-1], name="linear1")(x))
    return nn.Dense(self.width, name="linear2")(x)
