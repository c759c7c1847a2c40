"""ODSD's learner: its prototypes and its losses by hand."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax import network as net
from dfkt_jax.contracts import Context, unlabelled
from dfkt_jax.distillation import relations
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import relation
from tests.networks import spec, tiny

KEY = jax.random.key(8)
SETTINGS = KD(lr=0.02, temperature=2.0, crop_padding=1, flip=True)
RECIPE = Recipe(steps=12, batch_size=16)
DIRECTIONS = np.asarray(
  relation.normalize(jax.random.normal(KEY, (5, 8))), np.float32
)
ASSETS = {"prototypes": DIRECTIONS}


def see(images, assets=ASSETS, teacher=None):
  return Context(
    teacher=teacher or tiny(),
    batch=unlabelled(images),
    recipe=RECIPE,
    assets=assets,
  )


def one_step(learner, images, assets=ASSETS):
  context = see(images, assets)
  state = learner.init(KEY, tiny(1), context)
  return state, *jax.jit(learner.step)(KEY, state, context)


def classifier_directions():
  weights = np.asarray(tiny().params["linear"]["kernel"]).T
  return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def test_it_leans_on_prototypes_where_the_teacher_doubts():
  learner = ContrastiveRelations(denoise=0.8, prototype_temperature=0.05)
  features = jax.random.normal(KEY, (2, 8))
  logits = jnp.array([[40.0] + [0.0] * 9, [0.0] * 10])
  t = learner.low_noise(
    jax.nn.softmax(logits), features, jnp.asarray(DIRECTIONS)
  )
  u = np.asarray(relation.normalize(features))
  np.testing.assert_allclose(t[0], u[0], atol=1e-5)
  odds = np.exp(u[1] @ DIRECTIONS.T / 0.05)
  share = 0.8 * 0.9
  mixed = (1 - share) * u[1] + share * (odds / odds.sum()) @ DIRECTIONS
  np.testing.assert_allclose(t[1], mixed / np.linalg.norm(mixed), atol=1e-4)


def test_without_denoising_there_are_no_prototypes():
  learner = ContrastiveRelations(SETTINGS, denoise=0.0)
  features = jax.random.normal(KEY, (2, 8))
  t = learner.low_noise(jnp.full((2, 10), 0.1), features, None)
  np.testing.assert_allclose(t, relation.normalize(features), rtol=1e-5)
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  _, _, some = one_step(learner, images)
  _, _, none = one_step(learner, images, None)
  assert jax.tree.leaves(some) == jax.tree.leaves(none)


@pytest.mark.parametrize("assets", [ASSETS, None])
@pytest.mark.parametrize("angle_images", [4, 64])
def test_the_terms_are_the_equations(angle_images, assets):
  settings = KD(lr=0.02, temperature=2.0, hard_label_weight=0.3)
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  # Nothing is augmented, so both views are the image.
  learner = ContrastiveRelations(
    settings, denoise=0.8, angle_images=angle_images
  )
  state, _, info = one_step(learner, images, assets)
  views = jnp.concatenate([images, images])
  logits, taps = net.features(tiny(), images)
  directions = DIRECTIONS if assets else classifier_directions()
  t = learner.low_noise(
    jax.nn.softmax(logits), taps["penultimate"], jnp.asarray(directions)
  )
  _, taps, _ = net.train_features(tiny(1), views, KEY)
  z = relation.normalize(taps["penultimate"] @ state.projection)[:6]
  similarity = np.asarray(z @ t.T, np.float64) / 0.1
  own = np.exp(similarity.diagonal()) / np.exp(similarity).sum(1)
  assert info.contrast == pytest.approx(-np.log(own).mean(), rel=1e-3)
  structure = sum(
    weight * relation.huber(of(x[:n], z[:n]), of(t[:n], t[:n])).mean()
    for weight, of, n in (
      (1.0, relation.distances, 6),
      (2.0, relation.angles, angle_images),
    )
    for x in (z, t)
  )
  assert info.relation == pytest.approx(float(structure), rel=1e-3)


def test_it_learns_from_what_two_views_have_in_common():
  settings = KD(lr=0.02, noise=0.5)
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  seen = []

  class Spy(ContrastiveRelations):
    def low_noise(self, probabilities, features, directions):
      seen.append((probabilities, features))
      return super().low_noise(probabilities, features, directions)

  context = see(images)
  state = ContrastiveRelations(settings).init(KEY, tiny(1), context)
  Spy(settings).step(KEY, state, context)
  *view_keys, _ = jax.random.split(KEY, 3)
  outputs = [
    net.features(tiny(), settings.augment(k, images)) for k in view_keys
  ]
  features = sum(taps["penultimate"] for _, taps in outputs) / 2
  p = sum(jax.nn.softmax(logits) for logits, _ in outputs) / 2
  np.testing.assert_allclose(seen[0][0], p, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(seen[0][1], features, rtol=1e-4, atol=1e-6)


def test_terms_can_be_switched_off():
  learner = ContrastiveRelations(
    SETTINGS, contrast_weight=0.0, relation_weight=0.0
  )
  images = jax.random.uniform(KEY, (16, 8, 8, 1))
  state, after, info = one_step(learner, images)
  assert info.contrast == 0.0
  assert info.relation == 0.0
  # Nothing pulls at the projection but weight decay.
  shrunk = np.asarray(after.projection) / np.asarray(state.projection)
  assert np.ptp(shrunk) < 1e-3
  _, _, info = one_step(ContrastiveRelations(SETTINGS), images)
  assert info.contrast > 0.0
  assert info.relation > 0.0


def test_angles_have_the_weights_of_their_images():
  images = jax.random.uniform(KEY, (6, 8, 8, 1))
  learner = ContrastiveRelations(SETTINGS, angle_images=4)
  context = see(images)
  state = learner.init(KEY, tiny(1), context)
  step = jax.jit(learner.step)
  terms = []
  for weights in ([0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]):
    batch = context.batch._replace(weights=jnp.array(weights, jnp.float32))
    _, info = step(KEY, state, context._replace(batch=batch))
    terms.append(float(info.relation))
  assert np.isfinite(terms).all()
  assert len(set(terms)) == 3


def test_it_needs_images_to_relate():
  learner = ContrastiveRelations(SETTINGS)
  with pytest.raises(UsageError, match="--batch-size is 2 and contrastive"):
    one_step(learner, jnp.zeros((2, 8, 8, 1)))
  few = see(jnp.zeros((2, 8, 8, 1)))._replace(recipe=Recipe(batch_size=2))
  with pytest.raises(UsageError, match="--batch-size is 2 and contrastive"):
    learner.init(KEY, tiny(1), few)


class Bare(nn.Module):
  """A network without named features that ends in a convolution if asked to."""

  convolution: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    if self.convolution:
      return nn.Conv(10, (8, 8), padding="VALID")(x)[:, 0, 0]
    return nn.Dense(10)(x.mean((1, 2)))


def test_prototypes_are_the_directions_of_the_classifier():
  found = relations.prototypes(Context(teacher=tiny()))
  np.testing.assert_allclose(found, classifier_directions(), rtol=1e-5)
  assert found.shape == (10, 8)
  given = relations.prototypes(Context(teacher=tiny(), assets=ASSETS))
  np.testing.assert_array_equal(given, DIRECTIONS)


def test_a_classifier_that_is_not_linear_is_refused():
  teacher = net.init(KEY, Bare(convolution=True), spec())
  with pytest.raises(UsageError, match="last layer is not a linear one"):
    relations.prototypes(Context(teacher=teacher))


def test_networks_without_features_are_refused():
  bare = net.init(KEY, Bare(), spec())
  learner, images = ContrastiveRelations(SETTINGS), jnp.zeros((16, 8, 8, 1))
  with pytest.raises(UsageError, match="the teacher gives no penultimate"):
    learner.init(KEY, tiny(), see(images, teacher=bare))
  with pytest.raises(UsageError, match="the student gives no penultimate"):
    learner.init(KEY, bare, see(images))


def test_prototypes_of_another_width_are_refused():
  narrow = {"prototypes": DIRECTIONS[:, :6]}
  context = see(jnp.zeros((16, 8, 8, 1)), narrow)
  learner = ContrastiveRelations(SETTINGS)
  with pytest.raises(UsageError, match="have 6 dimensions .* features 8"):
    learner.init(KEY, tiny(1), context)
  without = dataclasses.replace(learner, denoise=0.0)
  assert without.init(KEY, tiny(1), context).projection.shape == (8, 8)
