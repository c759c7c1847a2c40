"""Selections as CSV files."""

import numpy as np
import pytest

from dfkt_jax.contracts import Selection
from dfkt_jax.data import selection
from dfkt_jax.data.chunked import ChunkedArray, ChunkedNames, save_npy
from dfkt_jax.data.pool import ImagePool
from dfkt_jax.errors import UsageError


@pytest.fixture
def pool(tmp_path):
  save_npy(tmp_path / "0.npy", np.zeros((4, 2, 2, 1), np.uint8))
  (tmp_path / "0.txt").write_text("a, b.png\nc.png\nd.png\ne.png")
  images = ChunkedArray([tmp_path / "0.npy"])
  names = ChunkedNames([tmp_path / "0.txt"], [4])
  return ImagePool("zip:pool.zip", images, names, 0, tmp_path, "ab" * 32)


def test_a_selection_is_read_back(tmp_path, pool):
  path = tmp_path / "selection.csv"
  chosen = Selection(np.array([2, 0]), np.array([0.9, 0.1], np.float32))
  selection.write(path, chosen, pool, np.arange(4), np.full(4, 0.5))
  assert path.read_text().splitlines() == [
    "index,name,class,confidence,score,pool",
    "2,d.png,2,0.5000,0.9,abababababababab",
    '0,"a, b.png",0,0.5000,0.1,abababababababab',
  ]
  again = selection.read(path, pool)
  np.testing.assert_array_equal(again.index, [2, 0])
  np.testing.assert_allclose(again.score, [0.9, 0.1])


@pytest.mark.parametrize(
  ("text", "part"),
  [
    ("1,0.5,ffffffffffffffff", "is of the pool ffffffffffffffff and"),
    (f"9,0.5,{'ab' * 8}", "has image 9, and zip:pool.zip has 4: take"),
    (f"1,0.5,{'ab' * 8}\n1,0.4,{'ab' * 8}", "has image 1 more than once"),
    (f"1,nan,{'ab' * 8}", "has a score of nan"),
    (f"x,0.5,{'ab' * 8}", "is not a table with the columns"),
    (f"{10**20},0.5,{'ab' * 8}", "is not a table with the columns"),
    (f"1,0.5,{'ab' * 70_000}", "is not a table with the columns"),
    ("", "names no image"),
  ],
)
def test_a_selection_of_something_else_is_refused(tmp_path, pool, text, part):
  path = tmp_path / "selection.csv"
  path.write_text("index,score,pool\n" + text)
  with pytest.raises(UsageError, match=part):
    selection.read(path, pool)


def test_names_with_line_ends_are_read_back(tmp_path):
  names = ["a\u2028b.png", "c\x0bd.png", 'e"f.png', "g\x85h.png"]
  save_npy(tmp_path / "0.npy", np.zeros((4, 2, 2, 1), np.uint8))

  class InMemory:
    def take(self, index):
      return [names[i] for i in index]

  images = ChunkedArray([tmp_path / "0.npy"])
  pool = ImagePool("folder:x", images, InMemory(), 0, tmp_path, "cd" * 32)  # type: ignore
  path = tmp_path / "selection.csv"
  chosen = Selection(np.arange(4), np.ones(4, np.float32))
  selection.write(path, chosen, pool, np.arange(4), np.ones(4))
  np.testing.assert_array_equal(selection.read(path, pool).index, np.arange(4))
