"""Soft-targeted transfer sets: images of a Gaussian over teacher features.

  h ~ N(mu, diag(sigma) R diag(sigma)),   R(i, j) = cos(w_i, w_j)
  y = tail(relu(h))                       fixed soft labels, as logits
  x* = argmin_x  t^2 KL(softmax(y / t) || softmax(T(x) / t)) - w_act mean |f(x)|

h is the output of an intermediate linear layer and w_i the incoming weights of
its unit i: for white input, the output would have correlation R. `tail` is the
rest of the teacher, which maps features to soft labels. The student then learns
from the stored pairs (x, y). Neither BatchNorm nor data is needed.

Source: Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set
Synthesis", AAAI 2021. The paper publishes no code; the derivation above is our
reading of it. Certain: one Gaussian for all classes, the correlation, the
activation loss, sigma between 0.5 and 3. Ours: sigma is a standard deviation
(a third-party port takes it for a variance); mu is 0 or the layer's bias; soft
labels are drawn once an image (that port draws them anew every iteration); with
`draws`, more soft labels are drawn and equally many are kept of every top
class; the eigenvalues of R have a floor; `moments="batch_norm"`, which takes
mean and deviation of every unit from the BatchNorm after the layer; and the
image prior of `target_fitting`.

`layer` is a linear layer or a convolution with one output a channel. By default
it is the layer before the last. Where that layer has several outputs a channel,
h stands for the features that enter the last layer:

  convolution (ResNets)   rectified, pooled features: relu(h). R is of the
      weights averaged over the window. The moments are those of a pixel after
      the layer's BatchNorm, before the shortcut is added and pixels are pooled.
  linear layer of tokens (vision transformers)   the class token after
      LayerNorm, which is not rectified: h itself. R is of the weights as they
      are. LayerNorm has no running moments, so `moments` must be "weights".
"""

import dataclasses
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Batch, Context, NonNegative, Positive
from dfkt_jax.devices.sharding import shard
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network, layers
from dfkt_jax.synthesis import targets
from dfkt_jax.synthesis.target_fitting import Info, State, TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD


class Gaussian(NamedTuple):
  """N(mean, factor factor^T)."""

  mean: jax.Array  # f32[width]
  factor: jax.Array  # f32[width, width]

  def draw(self, key: jax.Array, count: int) -> jax.Array:
    """Draw f32[count, width]."""
    z = jax.random.normal(key, (count, len(self.mean)))
    return self.mean[None] + shard(z) @ self.factor.T


@dataclasses.dataclass(frozen=True)
class SoftTarget:
  """Hyper-parameters; defaults are the paper's for LeNet-5 where it has any."""

  # images optimized together
  synthesis_batch_size: Annotated[int, Positive] = 100
  layer: str = ""  # name of the layer of h, such as fc1; "": before the last
  moments: Literal["weights", "batch_norm"] = "weights"  # of each unit of h
  # standard deviation of every unit (paper, MNIST)
  sigma: Annotated[float, Positive] = 1.5
  center: Literal["zero", "bias"] = "zero"  # mean of every unit
  # of R, so that a singular one can be drawn from
  eigenvalue_floor: Annotated[float, NonNegative] = 1e-6
  # soft labels drawn for each that is kept; more balance the classes (ours)
  draws: Annotated[int, Positive] = 1
  # of the images to the soft labels
  fitting: TargetFitting = TargetFitting(activation_weight=0.05)

  # The transfer set and the learner are ZSKD's.
  recipe: ClassVar[Recipe] = ZSKD.recipe
  learner: ClassVar[KD] = ZSKD.learner

  def init(self, key: jax.Array, context: Context) -> State:
    """Draw features, compute their soft labels, and draw noise.

    Raises:
      UsageError: the teacher has no such layer, the layer's width is not that
        of the features, or no BatchNorm follows the layer but `moments` needs
        one.
    """
    label_key, image_key = jax.random.split(key)
    logits = self.soft_labels(
      label_key, context.teacher, self.synthesis_batch_size
    )
    return self.fitting.init(image_key, logits, context.teacher)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take an Adam step on the pixels."""
    return self.fitting.step(key, state, context.teacher)

  def sample(self, key: jax.Array, state: State, count: int) -> Batch:
    """Return all images, or a random `count` of them if that is fewer."""
    return self.fitting.sample(key, state, count)

  def soft_labels(
    self, key: jax.Array, teacher: Network, count: int
  ) -> jax.Array:
    """Draw y, f32[count, classes].

    With `draws` above 1, every class that is the top class of any draw is that
    of equally many. Outside jit the teacher then runs on draws * count images.
    """
    if self.draws == 1:
      return self._draw(key, teacher, count)
    draw_key, class_key = jax.random.split(key)
    drawn = self._draw(draw_key, teacher, self.draws * count)
    classes = targets.balanced(class_key, count, drawn.shape[1])
    decisions = teacher.spec.task.decisions(drawn)
    return drawn[targets.of_classes(decisions, classes)]

  def _draw(self, key, teacher, count):
    layer, head = self._layers(teacher)
    h = self.features(teacher).draw(key, count)
    if layer.is_vector:
      return layers.logits_from_output(teacher, layer, h)
    if is_convolution(teacher, layer):
      h = jax.nn.relu(h)
    return layers.logits_from_input(teacher, head, h)

  def features(self, teacher: Network) -> Gaussian:
    """Return the model of h."""
    layer, _ = self._layers(teacher)
    correlation = incoming_correlation(teacher, layer)
    mean, deviation = self._unit_moments(teacher, layer)
    values, vectors = jnp.linalg.eigh(correlation)
    root = jnp.sqrt(jnp.maximum(values, self.eigenvalue_floor))
    return Gaussian(mean, deviation[:, None] * vectors * root[None])

  def _unit_moments(self, teacher, layer):
    """Return mean and standard deviation of the units, both f32[width]."""
    width = layer.shape[-1]
    if self.moments == "batch_norm":
      norm = layers.norm_parameters(teacher, self._norm(teacher, layer))
      if layer.is_vector:
        # h is the input of BatchNorm, so it has the running moments.
        return norm["mean"], jnp.sqrt(norm["var"])
      return norm["bias"], jnp.abs(norm["scale"])
    mean = jnp.zeros(width)
    if self.center == "bias":
      mean = layers.bias(teacher, layer)
    return mean, jnp.full(width, self.sigma)

  def _norm(self, teacher, layer):
    """Return the BatchNorm right after the layer."""
    order = layers.list_layers(teacher)
    behind = order[order.index(layer) + 1 :][:1]
    if not behind or not behind[0].is_norm:
      raise UsageError(
        f"--moments batch_norm needs a BatchNorm after the layer"
        f" {'.'.join(layer.path)} and this teacher has none: use --moments"
        " weights"
      )
    return behind[0]

  def _layers(self, teacher):
    """Return the layer of h, and the last."""
    linear = [
      layer for layer in layers.list_layers(teacher) if not layer.is_norm
    ]
    if len(linear) < 2:
      raise UsageError(
        "soft-target needs a layer before the last and this teacher has one"
        " layer: use another method"
      )
    fitting = {
      ".".join(layer.path): layer
      for layer in linear
      if layer.is_vector or layer == linear[-2]
    }
    if self.layer and self.layer not in fitting:
      raise UsageError(
        f"--layer is {self.layer!r}: expected one with a single output a"
        f" channel, {', '.join(fitting)}"
      )
    layer, head = linear[-2], linear[-1]
    if self.layer:
      layer = fitting[self.layer]
    features = layers.kernel(teacher, head).shape[-2]
    if not layer.is_vector and layer.shape[-1] != features:
      raise UsageError(
        f"soft-target models the {features} features of this teacher by its"
        f" layer {'.'.join(layer.path)}, which has {layer.shape[-1]} channels:"
        " give --layer NAME of a layer with a single output a channel, or use"
        " another method"
      )
    return layer, head


def is_convolution(teacher: Network, layer: layers.Layer) -> bool:
  """Return whether the layer has a window, and so is not a linear one."""
  return layers.kernel(teacher, layer).ndim > 2


def incoming_correlation(teacher: Network, layer: layers.Layer) -> jax.Array:
  """Return R, f32[width, width]: cosines of the units' incoming weights."""
  weights = layers.kernel(teacher, layer)
  if is_convolution(teacher, layer) and not layer.is_vector:
    weights = weights.mean((0, 1))
  weights = weights.reshape(-1, layer.shape[-1])
  norms = jnp.linalg.norm(weights, axis=0, keepdims=True)
  weights = weights / jnp.maximum(norms, 1e-12)
  return weights.T @ weights
