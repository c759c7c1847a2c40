"""Compare the contrast of given similarities with plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfkt_jax.losses.contrastive import choose_keys, contrast

KEY = jax.random.key(0)
SIMILARITY = np.random.default_rng(0).uniform(-1, 1, (3, 5)).astype(np.float32)
OWN = np.eye(3, 5, dtype=bool)
OTHERS = np.array(
  [[0, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=bool
)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_loss_is_the_share_of_the_own_key_among_the_chosen(margin):
  expected = []
  for row, (mine, others) in enumerate(zip(OWN, OTHERS)):
    own = np.exp((SIMILARITY[row][mine] - margin) / 0.2)
    rest = np.exp(SIMILARITY[row][others] / 0.2).sum()
    expected.append(-np.log(own / (own + rest))[0])
  found = contrast(jnp.asarray(SIMILARITY), OWN, OTHERS, 0.2, margin)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_keys_that_are_neither_do_not_count():
  moved = np.where(OWN | OTHERS, SIMILARITY, 100.0)
  found = [
    contrast(jnp.asarray(x, jnp.float32), OWN, OTHERS, 0.2)
    for x in (SIMILARITY, moved)
  ]
  np.testing.assert_array_equal(*found)


def test_a_query_without_its_own_key_has_no_loss_and_no_gradient():
  own = OWN.copy()
  own[1] = False
  loss = lambda x, others: contrast(x, own, others, 0.2).sum()
  for others in (OTHERS, np.zeros_like(OTHERS)):
    gradient = jax.grad(loss)(jnp.asarray(SIMILARITY), others)
    assert np.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
  assert contrast(jnp.asarray(SIMILARITY), own, OTHERS, 0.2)[1] == 0.0


def test_count_keys_are_chosen_and_each_at_some_time():
  among = np.zeros((2, 6), bool)
  among[0, [1, 3, 4, 5]] = True
  among[1, 2] = True
  met = np.zeros(6, int)
  for index in range(30):
    chosen = np.asarray(choose_keys(jax.random.fold_in(KEY, index), among, 2))
    assert not (chosen & ~among).any()
    assert chosen[0].sum() == 2
    assert chosen[1].sum() == 1
    met += chosen[0]
  assert (met[[1, 3, 4, 5]] > 5).all()
  np.testing.assert_array_equal(choose_keys(KEY, among, 100), among)


def test_keys_of_another_shape_are_refused():
  with pytest.raises(AssertionError):
    contrast(jnp.asarray(SIMILARITY), OWN[:1], OTHERS, 0.2)
