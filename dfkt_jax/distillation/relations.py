"""Contrastive relations: the student keeps the relations between images (ODSD).

Two published ideas (Wang et al., "Sampling to Distill: Knowledge Transfer from
Open-World Data", ECCV 2024), of which only names and abstract could be read:
all formulas below are ours, except those with a source of their own. ODSD's
third idea, its sampling, is `openworld.odsd`. u = f / |f| is the direction of
the teacher's penultimate features of an image, p its top probability, m_q the
prototypes, directions of length 1.

1. Denoising contrastive relational distillation. The low-noise representation
   of image i comes from the mean features and the mean prediction of its two
   augmented views, and leans towards the prototypes the less the teacher is
   sure,

     t_i = norm((1 - a_i) u_i + a_i sum_q softmax_q(u_i . m_q / tau_m) m_q),
     a_i = denoise (1 - p_i)

   The student's z = norm(W g), with g its penultimate features of either view,
   agrees with t_i against the others of the batch (InfoNCE, van den Oord et al.
   2018):

     L_con = - mean over v, i of log softmax_j(z_i^v . t_j / tau)[j = i]

2. Structured relation. Distances over their mean and angles of triples, as in
   relational distillation (Park et al., CVPR 2019), of student with student and
   of teacher with student, match the teacher's own under the Huber loss:

     L_rel = D(z, z; t, t) + D(t, z; t, t) + r [A(z, z; t, t) + A(t, z; t, t)]

   It is the mean over the two views. A is taken over the first `angle_images`
   of the batch, since it takes a float for every triple.

With distillation from the teacher's predictions for both views,

  L = KD + w_con L_con + w_rel L_rel

Prototypes are those that the source made of its images (ODSD does). Deviation:
with any other source they are the directions of the teacher's classifier
weights, one prototype a class, since features of images of a class lie near
them.

Hard labels are the images' own, or else the teacher's decisions, as in `kd`. An
image's weight multiplies its own row of each term; in the rows of the other
images it is compared like any other, whatever its weight.
"""

import dataclasses
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.contracts import Context, NonNegative, Positive, Share
from dfkt_jax.distillation import kd as distillation
from dfkt_jax.distillation.kd import KD
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import reduce, relation
from dfkt_jax.network import Network
from dfkt_jax.network.layers import kernel, list_layers

PROTOTYPES = "prototypes"
"""Among `context.assets`: f32[prototypes, teacher width], rows of length 1."""


class State(NamedTuple):
  kd: distillation.State
  projection: jax.Array  # W, f32[student width, teacher width]
  projection_opt_state: optax.OptState


class Info(NamedTuple):
  """Loss terms before weighting, and the agreement of top-1 decisions."""

  distance: jax.Array
  hard_label: jax.Array
  agreement: jax.Array
  contrast: jax.Array
  relation: jax.Array


@dataclasses.dataclass(frozen=True)
class ContrastiveRelations:
  """Hyper-parameters, all ours; each part can be switched off."""

  kd: KD = KD(
    lr=0.1, weight_decay=5e-4, temperature=4.0, crop_padding=4, flip=True
  )
  # the largest share of the prototypes in t; 0: t is u, without prototypes
  denoise: Annotated[float, Share] = 0.5
  prototype_temperature: Annotated[float, Positive] = 0.1  # tau_m
  # w_con; 0 switches the contrastive part off
  contrast_weight: Annotated[float, NonNegative] = 0.5
  contrast_temperature: Annotated[float, Positive] = 0.1  # tau
  # w_rel; 0 switches the relations off
  relation_weight: Annotated[float, NonNegative] = 1.0
  angle_ratio: Annotated[float, NonNegative] = 2.0  # r (Park et al.)
  # the largest number of images of a batch whose angles are compared
  angle_images: Annotated[int, Positive] = 64

  def init(self, key: jax.Array, student: Network, context: Context) -> State:
    """Return the state before the first step, with a random projection.

    Raises:
      UsageError: the batch is too small to have relations, or a network lacks
        what they need: penultimate features, and prototypes of their width.
    """
    self._check(context.recipe.batch_size)
    width = feature_width(student, "student")
    teacher_width = feature_width(context.teacher, "teacher")
    if self.denoise:
      found = jax.eval_shape(prototypes, context).shape[1]
      if found != teacher_width:
        raise UsageError(
          f"prototypes have {found} dimensions and the teacher's features"
          f" {teacher_width}: give a teacher whose features are the input of"
          " its last layer, or --denoise 0"
        )
    shape = (width, teacher_width)
    projection = jax.random.normal(key, shape) / jnp.sqrt(width)
    optimizer = self.kd.make_optimizer(context.recipe.steps)
    learner = self.kd.init(key, student, context)
    return State(learner, projection, optimizer.init(projection))

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take one step on two views of every image.

    Raises:
      UsageError: the batch is too small to have relations; or as `KD.step`.
    """
    kd, batch, steps = self.kd, context.batch, context.recipe.steps
    self._check(len(batch.images))
    *view_keys, dropout_key = jax.random.split(key, 3)
    views = jnp.concatenate([kd.augment(k, batch.images) for k in view_keys])
    teacher_logits, taps = net.features(context.teacher, views)
    low_noise = self.low_noise(
      _view_mean(jax.nn.softmax(teacher_logits)),
      _view_mean(taps["penultimate"]),
      prototypes(context) if self.denoise else None,
    )
    targets = teacher_logits
    if kd.target == "stored":
      targets = _two_views(kd.stored_targets(batch))
    labels, weights = (
      None if of_image is None else _two_views(of_image)
      for of_image in (batch.labels, batch.weights)
    )
    student = state.kd.student

    def loss(params, projection):
      logits, taps, variables = net.train_features(
        student.with_params(params), views, dropout_key, kd.statistics
      )
      distilled, terms = kd.objective(
        context.teacher.spec.task, targets, logits, labels, weights
      )
      z = relation.normalize(taps["penultimate"] @ projection)
      contrast, structure = self._relations(
        jnp.split(z, 2), low_noise, batch.weights
      )
      total = (
        distilled
        + self.contrast_weight * contrast
        + self.relation_weight * structure
      )
      return total, (variables, Info(*terms, contrast, structure))

    gradients, (variables, info) = jax.grad(loss, (0, 1), has_aux=True)(
      student.params, state.projection
    )
    learner = kd.update(state.kd, variables, gradients[0], steps)
    updates, opt_state = kd.make_optimizer(steps).update(
      gradients[1], state.projection_opt_state, state.projection
    )
    projection = state.projection + updates  # type: ignore
    return State(learner, projection, opt_state), info

  def student(self, state: State) -> Network:
    """Return the student as it is."""
    return state.kd.student

  def low_noise(
    self,
    probabilities: jax.Array,
    features: jax.Array,
    directions: jax.Array | None,
  ) -> jax.Array:
    """Return t, f32[batch, width] of length 1.

    Args:
      probabilities: the teacher's, f32[batch, classes].
      features: the teacher's, f32[batch, width].
      directions: the prototypes, f32[prototypes, width]; None: t is u.
    """
    u = relation.normalize(features)
    if directions is None:
      return relation.normalize(u)
    chex.assert_shape(directions, (None, features.shape[1]))
    nearness = jax.nn.softmax(u @ directions.T / self.prototype_temperature)
    doubt = 1.0 - probabilities.max(1, keepdims=True)
    share = self.denoise * doubt
    return relation.normalize((1.0 - share) * u + share * nearness @ directions)

  def _relations(self, views, t, weights):
    """Return L_con and L_rel, f32[]; a part of weight 0 is 0 and costs nothing.

    Args:
      views: z of each view, f32[batch, width].
      t: f32[batch, width].
      weights: f32[batch]; None: all count alike.
    """
    contrast = structure = jnp.float32(0.0)
    for z in views:
      if self.contrast_weight:
        per_image = relation.info_nce(z, t, self.contrast_temperature)
        contrast += reduce.mean(per_image, weights) / len(views)
      if self.relation_weight:
        structure += self._structure(z, t, weights) / len(views)
    return contrast, structure

  def _structure(self, z, t, weights):
    """Return L_rel of one view, f32[], of f32[batch, width] z and t."""

    def match(relate, z, t, weights):
      target = relate(t, t)
      own, mixed = (
        reduce.mean(_per_image(relation.huber(relate(x, z), target)), weights)
        for x in (z, t)
      )
      return own + mixed

    few = slice(self.angle_images)
    weights_of_few = None if weights is None else weights[few]
    angles = match(relation.angles, z[few], t[few], weights_of_few)
    distances = match(relation.distances, z, t, weights)
    return distances + self.angle_ratio * angles

  def _check(self, batch_size):
    if batch_size < 3 and (self.contrast_weight or self.relation_weight):
      raise UsageError(
        f"--batch-size is {batch_size} and contrastive relations compare the"
        " images of a batch with each other: give 3 or more, or"
        " --contrast-weight 0 --relation-weight 0"
      )


def prototypes(context: Context) -> jax.Array:
  """Return the source's prototypes, or one a class of the teacher's classifier.

  Returns:
    f32[prototypes, width], rows of length 1. Those of the classifier are the
    directions of the weights of each class, in order.

  Raises:
    UsageError: the source made none and the teacher's last layer is not a
      linear one.
  """
  assets = context.assets or {}
  if PROTOTYPES in assets:
    return jnp.asarray(assets[PROTOTYPES])
  layers = list_layers(context.teacher)
  weights = None
  if layers and not layers[-1].is_norm:
    weights = kernel(context.teacher, layers[-1])
  if weights is None or weights.ndim != 2:
    raise UsageError(
      "the teacher's last layer is not a linear one, whose weights contrastive"
      " relations take for prototypes: give a teacher with a linear classifier,"
      " a source that makes prototypes (odsd), or --denoise 0"
    )
  return relation.normalize(weights.T)


def feature_width(network: Network, name: str) -> int:
  """Return the width of a network's penultimate features.

  Raises:
    UsageError: the network does not give them; `name` names it.
  """
  image = jnp.zeros((1, *network.spec.shape))
  _, taps = jax.eval_shape(net.features, network, image)
  if "penultimate" not in taps:
    raise UsageError(
      f"the {name} gives no penultimate features, which contrastive relations"
      f" compare: give a {name} of an architecture in 'dfkt list archs', or use"
      " --learner kd"
    )
  return taps["penultimate"].shape[1]


def _two_views(x):
  """Repeat an array of the images for their second view."""
  return jnp.concatenate([x, x])


def _view_mean(x):
  return jnp.stack(jnp.split(x, 2)).mean(0)


def _per_image(x):
  """Average over all axes but the first."""
  return x.mean(tuple(range(1, x.ndim)))
