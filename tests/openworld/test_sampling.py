"""Prototypes, scores and the images that each method takes from a pool."""

import numpy as np
import pytest

from dfkt_jax.contracts import (
  HasLearner,
  HasRecipe,
  Learner,
  Scores,
  Selector,
  Summarizes,
)
from dfkt_jax.data.chunked import ChunkedArray, save_npy
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.openworld import odsd, prototypes
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.odsd import ODSD
from dfkt_jax.openworld.random_selection import RandomSelection

COUNT, CLASSES, WIDTH = 300, 3, 6


@pytest.fixture
def scores(tmp_path):
  """Class 0 has two tight groups, class 1 one, class 2 few and far out."""
  rng = np.random.default_rng(0)
  decision = np.repeat([0, 1, 2], [180, 90, 30]).astype(np.int32)
  axis = np.where(decision == 0, np.arange(COUNT) % 2, decision + 1)
  features = 5.0 * np.eye(WIDTH)[axis] + 0.1 * rng.normal(size=(COUNT, WIDTH))
  features[270:] += rng.normal(size=(30, WIDTH))
  path = tmp_path / "features.npy"
  save_npy(path, features.astype(np.float16))
  return Scores(
    decision,
    rng.uniform(0.3, 1.0, COUNT).astype(np.float32),
    rng.uniform(0.0, 1.0, COUNT).astype(np.float32),
    ChunkedArray([path]),
    CLASSES,
  )


def rng():
  return np.random.default_rng(1)


@pytest.mark.parametrize(
  ("method", "learner", "steps", "batch_size"),
  [
    (DFND(), NoiseAdaptation, 40_000, 512),
    (MosaicKD(), KD, 196_000, 256),
    (ODSD(), ContrastiveRelations, 80_000, 128),
    (RandomSelection(), KD, 80_000, 128),
  ],
)
def test_every_selector_has_its_papers_learner_and_recipe(
  method, learner, steps, batch_size
):
  assert isinstance(method, Selector)
  assert isinstance(method, HasLearner) and isinstance(method, HasRecipe)
  assert isinstance(method.learner, learner)
  assert isinstance(method.learner, Learner)
  expected = Recipe(steps=steps, batch_size=batch_size, student_steps=5)
  assert method.recipe == expected
  assert isinstance(method, Summarizes) == isinstance(method, ODSD)


def test_odsd_summarizes_the_selected_images(scores):
  chosen = ODSD().select(rng(), scores, 60)
  summary = ODSD().summarize(rng(), scores, chosen)
  among = np.sort(chosen.index)
  expected = prototypes.find(rng(), scores, 5, among).directions
  assert set(summary) == {"prototypes"}
  np.testing.assert_array_equal(summary["prototypes"], expected)
  assert expected.shape[1] == WIDTH


def test_prototypes_are_the_groups(scores):
  found = prototypes.find(rng(), scores, per_class=2)
  own = found.directions[found.classes == 0]
  # Both groups of class 0 have a prototype nearby.
  assert (own[:, :2].max(0) > 0.99).all()
  np.testing.assert_allclose(
    np.linalg.norm(found.directions, axis=1), 1.0, rtol=1e-5
  )


def test_a_class_that_spreads_wider_gets_more_prototypes(scores):
  found = prototypes.find(rng(), scores, per_class=3)
  counts = np.bincount(found.classes, minlength=CLASSES)
  assert counts[0] > counts[1] >= 1
  assert counts.max() <= 6


def test_images_lie_at_the_nearest_prototype_of_their_class(scores):
  found = prototypes.find(rng(), scores, per_class=2)
  assignment = prototypes.assign(scores, found)
  np.testing.assert_array_equal(
    found.classes[assignment.nearest], scores.decision
  )
  u = np.asarray(scores.features[7], np.float32)
  u /= np.linalg.norm(u)
  own = found.classes == scores.decision[7]
  expected = 1.0 - (u @ found.directions[own].T).max()
  assert assignment.distance[7] == pytest.approx(float(expected), abs=1e-5)


def test_a_part_that_tells_nothing_apart_has_no_weight():
  nearest = np.zeros(50, np.int32)
  distance = np.linspace(0.0, 1.0, 50).astype(np.float32)
  assignment = prototypes.Assignment(nearest, distance)
  score = odsd.adaptive_score(np.full(50, 0.7, np.float32), assignment)
  # Confidence is the same everywhere: the order is that of the distance.
  assert (np.diff(score) <= 1e-6).all()
  assert score[0] == pytest.approx(1.0)


def test_odsd_is_balanced_as_far_as_a_class_goes(scores):
  chosen = ODSD().select(rng(), scores, 120)
  counts = np.bincount(scores.decision[chosen.index], minlength=CLASSES)
  # Class 2 has but 30 images; the others share the rest.
  assert counts.tolist() == [45, 45, 30]
  assert len(set(chosen.index.tolist())) == 120
  assert (np.diff(chosen.score) <= 0).all()
  groups = np.bincount(chosen.index[scores.decision[chosen.index] == 0] % 2)
  assert abs(int(groups[0]) - int(groups[1])) <= 15


def test_odsd_draws_what_scores_higher_more_often(scores):
  found = prototypes.find(rng(), scores, 5)
  assignment = prototypes.assign(scores, found)
  score = odsd.adaptive_score(scores.confidence, assignment)
  drawn = np.zeros(COUNT)
  for seed in range(200):
    chosen = ODSD().select(np.random.default_rng(seed), scores, 60)
    drawn[chosen.index] += 1
  of_one = scores.decision == 1
  assert np.corrcoef(drawn[of_one], score[of_one])[0, 1] > 0.7
  # Chances, no ranking: all but the worst are drawn at some time.
  assert (drawn[of_one] > 0).mean() > 0.8


def test_everything_can_be_chosen(scores):
  assert len(ODSD().select(rng(), scores, COUNT).index) == COUNT


def test_dfnd_takes_the_surest(scores):
  chosen = DFND().select(rng(), scores, 20)
  threshold = np.sort(scores.confidence)[-20]
  assert (scores.confidence[chosen.index] >= threshold).all()
  np.testing.assert_allclose(
    chosen.score, np.log(scores.confidence[chosen.index])
  )
  plain = ODSD(prototype_sampling=False).select(rng(), scores, 20)
  assert set(plain.index) == set(chosen.index)


def test_mosaic_takes_the_highest_entropies(scores):
  chosen = MosaicKD().select(rng(), scores, 20)
  assert (scores.entropy[chosen.index] >= np.sort(scores.entropy)[-20]).all()


def test_random_is_a_function_of_the_seed(scores):
  one, other = (RandomSelection().select(rng(), scores, 50) for _ in range(2))
  np.testing.assert_array_equal(one.index, other.index)
  assert len(set(one.index.tolist())) == 50
