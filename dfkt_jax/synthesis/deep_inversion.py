"""DeepInversion: pixels optimised until the teacher takes them for its data.

  x* = argmin_x  CE(T(x), y)
                 + w_bn sum_l a_l (|mu_l(x) - m_l| + |s2_l(x) - v_l|)
                 + w_tv TV(x) + w_l2 |x| + w_c (1 - JS(T(x), S(x)))

mu_l, s2_l are batch mean and variance at the input of BatchNorm l and m_l, v_l
its running ones; |.| is the Euclidean norm over channels, not its square. a_l
is 1 but for the first layer. The last term is the competition of Adaptive
DeepInversion: images on which teacher T and the current student S disagree.

Source: Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via
DeepInversion", CVPR 2020, equations 2-4 and its adaptive variant; CIFAR-10
settings as published, betas, jitter and the first-layer weight as released.
`IMAGENET` has the released settings for 224 pixels.

The released code has no student training: `transfer` is that of the port in
zju-vipa's DataFree (temperature 20, 400 student steps a batch, crops, flips);
the authors name temperature 3.

Pixels are full size throughout. `half_size_share` of a batch's steps, the first
ones, show the networks and the image prior 2x2 averages of them, jittered half
as far (released, ImageNet). Each of these two stages has its own Adam, warm-up
and cosine (pixel_stages.py), so they are run through `stages`; `step` alone is
for one size and a constant rate.

As released and here: x lives in normalised space, one jitter offset moves the
whole batch, CIFAR-10 runs do not clip. Ours: labels are balanced; the
Jensen-Shannon divergence clamps no probability (`js_form="released"` does, and
is degenerate with many classes); the best snapshot is a real copy (the released
one aliases the live images, so that "best" is always the last); offsets and
flips can be drawn for each image (`jitter_each`, `image_flip`); a batch can go
through the networks in parts, with the same gradient (`micro_batch`), in bf16
where the released code has apex's fp16.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

from flax import linen as nn
from flax.errors import ScopeParamShapeError
import jax
import jax.numpy as jnp

from dfkt_jax import augment, parallel
from dfkt_jax import network as net
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, image_prior, statistics
from dfkt_jax.network import Network
from dfkt_jax.synthesis import arithmetic, micro_batches, targets
from dfkt_jax.synthesis.contract import Batch
from dfkt_jax.synthesis.pixel_stages import Stage, State

ROUND = 50  # steps between two log lines of `dfkt synthesize`, at most


class Info(NamedTuple):
  """Loss terms before weighting, and their weighted sum."""

  loss: jax.Array
  cross_entropy: jax.Array
  bn_distance: jax.Array
  total_variation: jax.Array
  l2: jax.Array
  competition: jax.Array


@dataclasses.dataclass(frozen=True)
class DeepInversion:
  """Hyper-parameters; defaults are those for CIFAR-10."""

  synthesis_batch_size: int = 256  # images optimised together
  image_lr: float = 0.05  # of Adam, in normalised pixel units (paper, CIFAR)
  image_schedule: Literal["constant", "cosine"] = "constant"  # of image_lr
  image_warmup: int = 0  # steps image_lr takes to rise (100 for ImageNet)
  beta1: float = 0.9  # of Adam (released; 0.5 for ImageNet)
  beta2: float = 0.999  # of Adam (released; 0.9 for ImageNet)
  class_weight: float = 1.0  # of the cross-entropy
  bn_weight: float = 10.0  # of the BatchNorm term (paper, CIFAR; ImageNet 0.01)
  first_bn_weight: float = 1.0  # a_1 (10 for ImageNet)
  tv_weight: float = 2.5e-5  # of the total variation (paper)
  l2_weight: float = 0.0  # of the mean image norm (released, CIFAR)
  competition_weight: float = 0.0  # 0: DeepInversion; adaptive above, often 10
  competition_temperature: float = 3.0  # of the softmax inside JS (released)
  js_form: Literal["exact", "released"] = "exact"  # released: clamped
  jitter: int = 2  # pixels the batch is rolled by, at most (released, CIFAR)
  jitter_each: bool = False  # a roll of its own for every image
  image_flip: bool = False  # mirror each image half of the time (ImageNet)
  clip: bool = False  # keep pixels inside [0, 1] after each step (ImageNet)
  best_snapshot: bool = True  # keep the images of the lowest loss, not the last
  half_size_share: float = 0.0  # of steps, at half the size (ImageNet 2/3)
  micro_batch: int = 0  # images in the networks at once; 0: the whole batch
  precision: arithmetic.Precision = "f32"  # of the networks' activations
  remat: bool = False  # compute activations twice rather than keep them

  transfer: ClassVar[Transfer] = Transfer(
    kd=KD(steps=80_000, lr=0.1, temperature=20.0, crop_padding=4, flip=True),
    synthesis_steps=2000,
    student_steps=400,
    pool_size=51_200,
  )

  def init(
    self, key: jax.Array, teacher: Network, student: Network | None
  ) -> State:
    """Unit Gaussian pixels and balanced labels.

    Raises:
      UsageError: the teacher has no BatchNorm but the BatchNorm term is on, or
        the competition is on and there is no student.
    """
    self._check(teacher, student)
    noise_key, label_key = jax.random.split(key)
    shape = (self.synthesis_batch_size, *teacher.spec.shape)
    x = parallel.split(jax.random.normal(noise_key, shape))
    labels = targets.balanced(label_key, shape[0], teacher.spec.classes)
    opt_state = parallel.split(Stage(self).optimizer().init(x))
    images = teacher.spec.denormalise(x)
    # A copy: two fields of a state that is donated must not share a buffer.
    best_images = jnp.copy(images)
    return State(
      images,
      labels,
      opt_state,
      best_images,
      best_loss=jnp.float32(jnp.inf),
      step=jnp.int32(0),
    )

  def stages(self, steps: int) -> list[tuple[Stage, int]]:
    """The half-size and the full-size part of a batch's `steps`."""
    half = round(self.half_size_share * steps)
    if steps >= 10 * ROUND:
      # Both stages are then of whole rounds, as steps are logged and saved.
      half = round(half / ROUND) * ROUND
    stages = [
      Stage(self, steps=half, shrink=2),
      Stage(self, steps=steps - half, first=half),
    ]
    return [(stage, stage.steps) for stage in stages if stage.steps]

  def step(
    self,
    key: jax.Array,
    state: State,
    teacher: Network,
    student: Network | None,
  ) -> tuple[State, Info]:
    """One Adam step on the normalised images.

    Raises:
      UsageError: how to take it depends on how many there will be (`stages`).
    """
    if self.half_size_share or self.image_schedule != "constant":
      raise UsageError(
        f"DeepInversion with half_size_share {self.half_size_share} and"
        f" image_schedule {self.image_schedule!r} has to know how many steps"
        " there will be: take those of its stages(steps)"
      )
    return Stage(self).step(key, state, teacher, student)

  def sample(self, key: jax.Array, state: State, batch_size: int) -> Batch:
    """The images as they are, or `batch_size` of them where that is fewer."""
    images = state.best_images if self.best_snapshot else state.images
    images = jnp.clip(images, 0.0, 1.0)
    if batch_size >= len(images):
      return Batch(images, state.labels)
    chosen = jax.random.permutation(key, len(images))[:batch_size]
    return Batch(images[chosen], state.labels[chosen])

  def gradient(
    self,
    key: jax.Array,
    x: jax.Array,
    labels: jax.Array,
    teacher: Network,
    student: Network | None,
    shrink: int = 1,
  ) -> tuple[jax.Array, Info]:
    """That of the loss at normalised images, like `x`, and the loss.

    Networks and image prior see averages over squares of `shrink` pixels.
    """
    seen, back_to_pixels = jax.vjp(lambda x: self._view(key, x, shrink), x)
    (prior, terms), prior_gradient = jax.value_and_grad(
      self._prior, has_aux=True
    )(seen)
    (match, more_terms), gradient = micro_batches.value_and_grad(
      lambda averages: self._match(averages, teacher),
      lambda x, labels: self._averages(x, labels, teacher, student),
      seen,
      labels,
      self.micro_batch,
    )
    (gradient,) = back_to_pixels(prior_gradient + gradient)
    return gradient, Info(loss=prior + match, **terms, **more_terms)

  def _view(self, key, x, shrink):
    """What of the pixels the networks and the image prior see in this step."""
    roll_key, flip_key = jax.random.split(key)
    if shrink > 1:
      x = nn.avg_pool(x, (shrink, shrink), (shrink, shrink))
    jitter = self.jitter // shrink
    if jitter:
      roll = augment.jitter_each if self.jitter_each else augment.jitter
      x = roll(roll_key, x, jitter)
    if self.image_flip:
      x = augment.random_flip(flip_key, x)
    return x

  def _prior(self, x):
    total_variation = image_prior.total_variation_l2(x)
    l2 = image_prior.l2_norm(x)
    loss = self.tv_weight * total_variation + self.l2_weight * l2
    return loss, {"total_variation": total_variation, "l2": l2}

  def _averages(self, x, labels, teacher, student):
    """All that the loss asks of the networks, each a mean over the images."""
    images = teacher.spec.denormalise(x)
    logits, taps = net.statistics(self._arranged(teacher), images)
    averages = {
      "moments": statistics.moments(taps, teacher.batch_stats),
      "cross_entropy": classification.cross_entropy(logits, labels),
    }
    if self.competition_weight:
      theirs = net.logits(self._arranged(student), images)
      averages["divergence"] = self._jensen_shannon(logits, theirs)
    return averages

  def _match(self, averages, teacher):
    cross_entropy = averages["cross_entropy"]
    bn_distance = competition = jnp.float32(0.0)
    if self.bn_weight:
      running = teacher.batch_stats
      bn_distance = statistics.norm_distance(
        statistics.from_moments(averages["moments"], running),
        running,
        net.batch_norm_paths(teacher)[0],
        self.first_bn_weight,
      )
    if self.competition_weight:
      competition = 1.0 - jnp.clip(averages["divergence"], 0.0, 1.0)
    loss = (
      self.class_weight * cross_entropy
      + self.bn_weight * bn_distance
      + self.competition_weight * competition
    )
    return loss, {
      "cross_entropy": cross_entropy,
      "bn_distance": bn_distance,
      "competition": competition,
    }

  def _jensen_shannon(self, teacher_logits, student_logits):
    form = {
      "exact": classification.jensen_shannon,
      "released": classification.jensen_shannon_released,
    }[self.js_form]
    return form(teacher_logits, student_logits, self.competition_temperature)

  def _check(self, teacher, student):
    if self.bn_weight and not teacher.batch_stats:
      raise UsageError(
        "deep_inversion matches BatchNorm statistics and this teacher has no"
        " BatchNorm: give a teacher that has, or --bn-weight 0 for the class"
        " term and image prior alone"
      )
    if self.jitter < 0 or self.synthesis_batch_size < 1:
      raise UsageError(
        f"--jitter is {self.jitter} and --synthesis-batch-size"
        f" {self.synthesis_batch_size}: give 0 or more, and 1 or more"
      )
    if self.competition_weight and student is None:
      raise UsageError(
        "deep_inversion --competition-weight needs a student to compete with:"
        " give --student NETWORK_DIR, or --competition-weight 0"
      )
    if self.micro_batch and self.synthesis_batch_size % self.micro_batch:
      raise UsageError(
        f"--micro-batch is {self.micro_batch} and --synthesis-batch-size"
        f" {self.synthesis_batch_size}: give a divisor of the latter, or 0"
      )
    networks = [teacher, student] if self.competition_weight else [teacher]
    for network in networks:
      network = self._arranged(network)
      if self.half_size_share:
        self._check_half_size(network)

  def _check_half_size(self, network):
    height, width, channels = network.spec.shape
    half = jax.ShapeDtypeStruct(
      (1, height // 2, width // 2, channels), "float32"
    )
    try:
      jax.eval_shape(net.logits, network, half)
      fits = height % 2 == 0 and width % 2 == 0
    except (ScopeParamShapeError, UsageError):
      fits = False
    if not fits:
      raise UsageError(
        f"--half-size-share is {self.half_size_share} and the architecture"
        f" {type(network.module).__name__} cannot take half of {height}x{width}"
        " pixels: give --half-size-share 0"
      )

  def _arranged(self, network):
    return arithmetic.arranged(network, self.precision, self.remat)


# As released for a ResNet-50 and 224 pixels, 2,000 steps at 112 and then 1,000:
# give it 3,000. Batches were 84 there and 152 in the paper.
IMAGENET = DeepInversion(
  synthesis_batch_size=84,
  image_lr=0.25,
  image_schedule="cosine",
  image_warmup=100,
  beta1=0.5,
  beta2=0.9,
  bn_weight=0.01,
  first_bn_weight=10.0,
  tv_weight=1e-4,
  l2_weight=1e-5,
  jitter=30,
  image_flip=True,
  clip=True,
  half_size_share=2 / 3,
)
