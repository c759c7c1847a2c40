"""Soft-targeted transfer sets: images of a Gaussian over teacher features.

  h ~ N(mu, diag(sigma) R diag(sigma)),   R(i, j) = cos(w_i, w_j)
  y = tail(relu(h))                       fixed soft labels, as logits
  x* = argmin_x  t^2 KL(softmax(y / t) || softmax(T(x) / t)) - w_act mean |f(x)|

h is what an intermediate linear layer answers and w_i the incoming weights of
its unit i: were its input white, its output would have correlation R. `tail` is
the rest of the teacher, which turns features into soft labels. The student then
learns from the stored pairs (x, y). No BatchNorm and no data are needed.

Source: Wang, "Data-Free Knowledge Distillation with Soft Targeted Transfer Set
Synthesis", AAAI 2021. The paper publishes no code; the derivation above is our
reading of it. Certain: one Gaussian for all classes, the correlation, the
activation loss, sigma between 0.5 and 3. Ours: sigma is a standard deviation
(a third-party port takes it for a variance); mu is 0 or the layer's bias; soft
labels are drawn once an image (that port draws them anew every iteration);
of more `draws` as many are kept of every top class; the eigenvalues of R have a
floor; `moments="batch_norm"`, which takes mean and deviation of every unit from
the BatchNorm behind the layer; and the image prior of `target_fitting`.

`layer` is a linear layer or a convolution with one output a channel. By default
it is the one before the last; where that has a map for an output (ResNets), h
stands for the rectified, pooled features that the last layer is given, R is of
the convolution's weights averaged over its window, and the moments of a pixel
behind its BatchNorm, before the shortcut is added and pixels are pooled, have
to do for those of h.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dfkt_jax import parallel, tails
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.network import Network
from dfkt_jax.synthesis import targets
from dfkt_jax.synthesis.contract import Batch
from dfkt_jax.synthesis.target_fitting import Info, State, TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD


class Gaussian(NamedTuple):
  """N(mean, factor factor^T)."""

  mean: jax.Array  # f32[width]
  factor: jax.Array  # f32[width, width]

  def draw(self, key: jax.Array, count: int) -> jax.Array:
    """f32[count, width]."""
    z = jax.random.normal(key, (count, len(self.mean)))
    return self.mean[None] + parallel.split(z) @ self.factor.T


@dataclasses.dataclass(frozen=True)
class SoftTarget:
  """Hyper-parameters; defaults are the paper's for LeNet-5 where it has any."""

  synthesis_batch_size: int = 100  # images optimised together
  layer: str = ""  # name of the layer h is of, such as fc1; "": before the last
  moments: Literal["weights", "batch_norm"] = "weights"  # of each unit of h
  sigma: float = 1.5  # standard deviation of every unit (paper, MNIST)
  center: Literal["zero", "bias"] = "zero"  # mean of every unit
  eigenvalue_floor: float = 1e-6  # of R, so that a singular one can be drawn
  draws: int = 1  # soft labels drawn for each kept; more balance classes (ours)
  fitting: TargetFitting = TargetFitting(activation_weight=0.05)

  # The set and the student's side are ZSKD's.
  transfer: ClassVar[Transfer] = ZSKD.transfer

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    """Soft labels of drawn features, and noise.

    Raises:
      UsageError: the teacher has no such layer, or no BatchNorm behind it but
        `moments` asks for it.
    """
    label_key, image_key = jax.random.split(key)
    logits = self.soft_labels(label_key, teacher, self.synthesis_batch_size)
    return self.fitting.init(image_key, logits, teacher)

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """One Adam step on the pixels."""
    return self.fitting.step(key, state, teacher)

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    return self.fitting.sample(key, state, batch_size)

  def soft_labels(
    self, key: jax.Array, teacher: Network, count: int
  ) -> jax.Array:
    """y, f32[count, classes].

    With `draws` every class is the top of equally many, as far as it is the top
    of any. Outside jit the teacher then runs on draws * count images.
    """
    if self.draws == 1:
      return self._draw(key, teacher, count)
    draw_key, class_key = jax.random.split(key)
    drawn = self._draw(draw_key, teacher, self.draws * count)
    classes = targets.balanced(class_key, count, drawn.shape[1])
    return drawn[targets.of_classes(drawn.argmax(1), classes)]

  def _draw(self, key, teacher, count):
    layer, head = self._layers(teacher)
    h = self.features(teacher).draw(key, count)
    if layer.is_vector:
      return tails.from_output(teacher, layer, h)
    return tails.from_input(teacher, head, jax.nn.relu(h))

  def features(self, teacher: Network) -> Gaussian:
    """The model of h."""
    layer, _ = self._layers(teacher)
    correlation = incoming_correlation(teacher, layer)
    mean, deviation = self._unit_moments(teacher, layer)
    values, vectors = jnp.linalg.eigh(correlation)
    root = jnp.sqrt(jnp.maximum(values, self.eigenvalue_floor))
    return Gaussian(mean, deviation[:, None] * vectors * root[None])

  def _unit_moments(self, teacher, layer):
    """Mean and standard deviation, both f32[width]."""
    width = layer.shape[-1]
    if self.moments == "batch_norm":
      norm = tails.norm_parameters(teacher, self._norm(teacher, layer))
      if layer.is_vector:
        # h goes through BatchNorm, so it has the running moments.
        return norm["mean"], jnp.sqrt(norm["var"])
      return norm["bias"], jnp.abs(norm["scale"])
    mean = jnp.zeros(width)
    if self.center == "bias":
      mean = tails.bias(teacher, layer)
    return mean, jnp.full(width, self.sigma)

  def _norm(self, teacher, layer):
    order = tails.layers(teacher)
    behind = order[order.index(layer) + 1 :][:1]
    if not behind or not behind[0].is_norm:
      raise UsageError(
        f"--moments batch_norm needs a BatchNorm behind the layer"
        f" {'.'.join(layer.path)} and this teacher has none: use --moments"
        " weights"
      )
    return behind[0]

  def _layers(self, teacher):
    """The layer of h, and the last."""
    linear = [layer for layer in tails.layers(teacher) if not layer.is_norm]
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
    return fitting[self.layer] if self.layer else linear[-2], linear[-1]


def incoming_correlation(teacher: Network, layer: tails.Layer) -> jax.Array:
  """R, f32[width, width]: cosines of the units' incoming weights."""
  weights = tails.kernel(teacher, layer)
  if not layer.is_vector:
    weights = weights.mean((0, 1))
  weights = weights.reshape(-1, layer.shape[-1])
  norms = jnp.linalg.norm(weights, axis=0, keepdims=True)
  weights = weights / jnp.maximum(norms, 1e-12)
  return weights.T @ weights
