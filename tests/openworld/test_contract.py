"""Guarantees of every selector, for any pool."""

import numpy as np
import pytest

from dfkt_jax import methods
from dfkt_jax.contracts import Scores, Selector, Summarizes

COUNT, CLASSES, WIDTH = 60, 3, 5
METHODS = {name: entry.load()() for name, entry in methods.SELECTORS.items()}
# Random selection has no ranking.
RANKING = [name for name in METHODS if name != "random"]
SUMMARIZING = [n for n, m in METHODS.items() if isinstance(m, Summarizes)]


def pool() -> Scores:
  """Return the scores of a pool with three unequal classes."""
  rng = np.random.default_rng(0)
  decision = np.repeat([0, 1, 2], [35, 20, 5]).astype(np.int32)
  features = np.eye(CLASSES, WIDTH)[decision]
  features += 0.3 * rng.normal(size=(COUNT, WIDTH))
  return Scores(
    rng.permutation(decision),
    rng.uniform(0.4, 1.0, COUNT).astype(np.float32),
    rng.uniform(0.0, 1.0, COUNT).astype(np.float32),
    features.astype(np.float16),
    CLASSES,
  )


def select(name, count, seed=1):
  return METHODS[name].select(np.random.default_rng(seed), pool(), count)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [1, 7, 40, COUNT])
def test_a_selection_has_the_asked_number_of_distinct_images(name, count):
  assert isinstance(METHODS[name], Selector)
  chosen = select(name, count)
  assert chosen.index.shape == chosen.score.shape == (count,)
  assert np.issubdtype(chosen.index.dtype, np.integer)
  assert len(np.unique(chosen.index)) == count
  assert chosen.index.min() >= 0 and chosen.index.max() < COUNT


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_finite(name):
  score = select(name, COUNT).score
  assert np.issubdtype(score.dtype, np.floating)
  assert np.isfinite(score).all()


@pytest.mark.parametrize("name", RANKING)
def test_the_best_images_come_first(name):
  score = select(name, 40).score
  assert (np.diff(score) <= 0).all()
  assert score[0] > score[-1]


@pytest.mark.parametrize("name", METHODS)
def test_one_seed_makes_one_selection(name):
  one, other = select(name, 20), select(name, 20)
  np.testing.assert_array_equal(one.index, other.index)
  np.testing.assert_array_equal(one.score, other.score)


@pytest.mark.parametrize("name", METHODS)
def test_selecting_leaves_the_scores_as_they_are(name):
  scores, before = pool(), pool()
  METHODS[name].select(np.random.default_rng(1), scores, 20)
  for field in ("decision", "confidence", "entropy", "features"):
    np.testing.assert_array_equal(
      getattr(scores, field), getattr(before, field)
    )


def test_some_selector_summarizes():
  assert SUMMARIZING


@pytest.mark.parametrize("name", SUMMARIZING)
def test_a_summary_is_a_dict_of_finite_arrays_and_a_function_of_the_seed(name):
  chosen = select(name, 40)
  found, again = (
    METHODS[name].summarize(np.random.default_rng(2), pool(), chosen)
    for _ in range(2)
  )
  assert isinstance(found, dict) and found
  assert found.keys() == again.keys()
  for key, value in found.items():
    assert isinstance(key, str)
    assert isinstance(value, np.ndarray) and value.size
    assert value.dtype != object and np.isfinite(value).all()
    np.testing.assert_array_equal(value, again[key])
