"""Balanced class targets, and images of given classes."""

import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.synthesis import targets

KEY = jax.random.key(7)


def test_balanced_classes_differ_by_one_at_most():
  labels = targets.balanced(KEY, 64, 10)
  counts = np.bincount(labels, minlength=10)
  assert set(counts) == {6, 7}


def test_a_small_batch_has_random_classes():
  labels = np.asarray(targets.balanced(KEY, 100, 1000))
  assert labels.dtype == np.int32
  assert len(set(labels.tolist())) == 100
  assert len(set((labels // 100).tolist())) == 10
  assert labels.max() < 1000


def test_a_class_gets_another_index_each_time():
  decisions = jax.random.randint(KEY, (500,), 0, 10)
  classes = targets.balanced(KEY, 64, 10)
  index = np.asarray(targets.of_classes(decisions, classes))
  np.testing.assert_array_equal(decisions[index], classes)
  assert len(set(index.tolist())) == 64


def test_a_rare_class_is_taken_again_and_a_missing_one_replaced():
  decisions = jnp.array([3, 0, 3, 1, 0])
  index = targets.of_classes(decisions, jnp.array([2, 1, 9, 1, 2, 3, 3, 3]))
  found = np.asarray(index).tolist()
  assert found[1] == found[3] == 3
  assert found[5:] == [0, 2, 0]
  # The stand-ins for missing classes differ.
  assert len({found[0], found[2], found[4]}) == 3
