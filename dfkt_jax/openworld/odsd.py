"""ODSD: open-world images near the teacher's data, and their relations.

Three published ideas (Wang et al., "Sampling to Distill: Knowledge Transfer
from Open-World Data", ECCV 2024), of which only names and abstract could be
read: all formulas below are ours, but for those with a source of their own.
u = f / |f| is the direction of the teacher's penultimate features of an image,
p its top probability, c the predicted class.

1. Adaptive prototype sampling. Prototypes m_q of every class (`prototypes`);
   q is an image's nearest one of class c, and

     confidence  p
     closeness   u . m_q
     density     1 - (1 - u . m_q) / (mean of 1 - u . m_q over the images of q)

   are each brought to [0, 1] between their 1st and 99th percentile. The score
   is their mean weighted by their standard deviations over the pool: what tells
   images apart counts. Of each class as many are drawn as of any other, and
   within it of each prototype, without replacement and with chances in
   proportion to the score. (The best of each prototype are too much alike.)

2. Denoising contrastive relational distillation. The low-noise representation
   of image i is of the mean features and the mean prediction of its two
   augmented views, and leans towards prototypes the less the teacher is sure,

     t_i = norm((1 - a_i) u_i + a_i sum_q softmax_q(u_i . m_q / tau_m) m_q),
     a_i = denoise (1 - p_i)

   and the student's z = norm(W g), g its penultimate features of either view,
   both agree with it against the batch's others (InfoNCE, van den Oord et al.
   2018):

     L_con = - mean over v, i of log softmax_j(z_i^v . t_j / tau)[j = i]

3. Structured relation. Distances over their mean and angles of triples, as in
   relational distillation (Park et al., CVPR 2019), of student with student and
   of teacher with student, match the teacher's own under the Huber loss:

     L_rel = D(z, z; t, t) + D(t, z; t, t) + r [A(z, z; t, t) + A(t, z; t, t)]

   of either view, the mean. A is of the first `angle_images` of the batch: it
   takes a float for every triple.

With distillation from the teacher's answers to both views,

     L = KD + w_con L_con + w_rel L_rel
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfkt_jax import network as net
from dfkt_jax.distillation import kd as distillation
from dfkt_jax.distillation.kd import KD
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import relation
from dfkt_jax.network import Network
from dfkt_jax.openworld import prototypes
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.scoring import Scores
from dfkt_jax.openworld.selection import Selection


class State(NamedTuple):
  learner: distillation.State
  projection: jax.Array  # W, f32[student width, teacher width]
  projection_opt_state: optax.OptState
  prototypes: jax.Array  # f32[prototypes, teacher width], of length 1


class Info(NamedTuple):
  """Loss terms before weighting; agreement is of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array
  contrast: jax.Array
  relation: jax.Array


@dataclasses.dataclass(frozen=True)
class ODSD:
  """Hyper-parameters, all ours; each part can be switched off."""

  prototype_sampling: bool = True  # False: the highest confidences, as DFND
  prototypes_per_class: int = 5  # on average over classes
  denoise: float = 0.5  # largest share of the prototypes in t; 0: t is u
  prototype_temperature: float = 0.1  # tau_m
  contrast_weight: float = 0.5  # w_con; 0 switches the contrastive part off
  contrast_temperature: float = 0.1  # tau
  relation_weight: float = 1.0  # w_rel; 0 switches the relations off
  angle_ratio: float = 2.0  # r (Park et al.)
  angle_images: int = 64  # at most, of a batch, whose angles are compared

  study: ClassVar[Study] = Study(
    kd=KD(lr=0.1, weight_decay=5e-4, temperature=4.0, crop_padding=4, flip=True)
  )

  def select(
    self, rng: np.random.Generator, scores: Scores, count: int
  ) -> Selection:
    """Adaptive prototype sampling."""
    if not self.prototype_sampling:
      index = np.argsort(-scores.confidence, kind="stable")[:count]
      return Selection(index, scores.confidence[index])
    found = prototypes.find(rng, scores, self.prototypes_per_class)
    placement = prototypes.place(scores, found)
    score = adaptive_score(scores.confidence, placement)
    quota = _even(np.bincount(scores.decision, minlength=scores.classes), count)
    chosen = []
    for label, share in enumerate(quota):
      own = np.flatnonzero(found.classes == label)
      members = [np.flatnonzero(placement.nearest == q) for q in own]
      shares = _even(np.array([len(m) for m in members], int), share)
      for of_prototype, taken in zip(members, shares):
        # The Gumbel-max trick: chances in proportion to the score.
        noise = rng.gumbel(size=len(of_prototype))
        order = np.argsort(-np.log(score[of_prototype] + 1e-6) - noise)
        chosen.append(of_prototype[order[:taken]])
    index = np.concatenate(chosen)
    index = index[np.argsort(-score[index], kind="stable")]
    return Selection(index, score[index])

  def summarise(
    self, rng: np.random.Generator, scores: Scores, selection: Selection
  ) -> np.ndarray:
    """Prototypes of the selected images, f32[prototypes, width]."""
    among = np.sort(selection.index)
    found = prototypes.find(rng, scores, self.prototypes_per_class, among)
    return found.directions

  def init(
    self,
    key: jax.Array,
    teacher: Network,
    student: Network,
    kd: KD,
    summary: Any,
  ) -> State:
    width = jax.eval_shape(
      net.features, student, jnp.zeros((1, *student.spec.shape))
    )[1]["penultimate"].shape[1]
    shape = (width, summary.shape[1])
    projection = jax.random.normal(key, shape) / jnp.sqrt(width)
    return State(
      kd.init(student),
      projection,
      kd.make_optimizer().init(projection),
      jnp.asarray(summary),
    )

  def step(
    self,
    key: jax.Array,
    state: State,
    images: jax.Array,
    teacher: Network,
    kd: KD,
  ) -> tuple[State, Info]:
    """One step on two views of every image.

    Raises:
      UsageError: the batch is too small to have relations.
    """
    self._check(len(images))
    *view_keys, dropout_key = jax.random.split(key, 3)
    views = jnp.concatenate([kd.augment(k, images) for k in view_keys])
    teacher_logits, taps = net.features(teacher, views)
    low_noise = self.low_noise(
      _view_mean(jax.nn.softmax(teacher_logits)),
      _view_mean(taps["penultimate"]),
      state.prototypes,
    )
    student = state.learner.student

    def loss(params, projection):
      logits, taps, variables = net.train_features(
        student.with_params(params), views, dropout_key, kd.statistics
      )
      distilled, terms = kd.objective(
        teacher_logits, logits, teacher_logits.argmax(1)
      )
      z = relation.normalise(taps["penultimate"] @ projection)
      contrast, structure = self._relations(jnp.split(z, 2), low_noise)
      total = (
        distilled
        + self.contrast_weight * contrast
        + self.relation_weight * structure
      )
      return total, (variables, Info(*terms, contrast, structure))

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      student.params, state.projection
    )
    learner = kd.update(state.learner, variables, gradients[0])
    updates, opt_state = kd.make_optimizer().update(
      gradients[1], state.projection_opt_state, state.projection
    )
    projection = state.projection + updates  # type: ignore
    return State(learner, projection, opt_state, state.prototypes), info

  def student(self, state: State) -> Network:
    return state.learner.student

  def low_noise(
    self, probabilities: jax.Array, features: jax.Array, directions: jax.Array
  ) -> jax.Array:
    """t, f32[batch, width] of length 1."""
    u = relation.normalise(features)
    nearness = jax.nn.softmax(u @ directions.T / self.prototype_temperature)
    doubt = 1.0 - probabilities.max(1, keepdims=True)
    share = self.denoise * doubt
    return relation.normalise((1.0 - share) * u + share * nearness @ directions)

  def _relations(self, views, t):
    """L_con and L_rel; what is switched off is 0 and costs nothing."""
    contrast = structure = jnp.float32(0.0)
    for z in views:
      if self.contrast_weight:
        of_view = relation.info_nce(z, t, self.contrast_temperature)
        contrast += of_view / len(views)
      if self.relation_weight:
        structure += self._structure(z, t) / len(views)
    return contrast, structure

  def _structure(self, z, t):
    def match(of, z, t):
      own = of(t, t)
      return relation.huber(of(z, z), own) + relation.huber(of(t, z), own)

    few = slice(self.angle_images)
    angles = match(relation.angles, z[few], t[few])
    return match(relation.distances, z, t) + self.angle_ratio * angles

  def _check(self, batch_size):
    if batch_size < 3 and (self.contrast_weight or self.relation_weight):
      raise UsageError(
        f"--batch-size is {batch_size} and odsd relates the images of a batch"
        " to each other: give 3 or more, or --contrast-weight 0"
        " --relation-weight 0"
      )


def _view_mean(x):
  return jnp.stack(jnp.split(x, 2)).mean(0)


def adaptive_score(
  confidence: np.ndarray, placement: prototypes.Placement
) -> np.ndarray:
  """f32[n], the weighted mean of confidence, closeness and density."""
  nearest, distance = placement
  sizes = np.maximum(np.bincount(nearest), 1)
  radius = np.bincount(nearest, weights=distance) / sizes
  density = 1.0 - distance / np.maximum(radius[nearest], 1e-12)
  parts = np.stack([_to_unit(x) for x in (confidence, 1.0 - distance, density)])
  weights = parts.std(1)
  if not weights.any():
    weights = np.ones(len(weights))
  return (weights @ parts / weights.sum()).astype(np.float32)


def _to_unit(x):
  low, high = np.percentile(x, [1, 99])
  return np.clip((x - low) / max(high - low, 1e-12), 0.0, 1.0)


def _even(available: np.ndarray, count: int) -> np.ndarray:
  """Shares `count` out as evenly as what is available allows, i64 like it."""
  shares = np.zeros_like(available)
  missing = min(count, int(available.sum()))
  while missing:
    open_ = np.flatnonzero(shares < available)
    each = max(missing // len(open_), 1)
    for place in open_[:missing]:
      more = min(each, available[place] - shares[place])
      shares[place] += more
      missing -= more
  return shares
