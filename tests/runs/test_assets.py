"""Assets are made once a run, whatever becomes of it."""

import numpy as np
import pytest

from dfkt_jax.contracts import Context
from dfkt_jax.errors import DfktError, UsageError
from dfkt_jax.runs import assets


class Draws:
  """Prepares an array under a name."""

  def __init__(self, name="level"):
    self.name = name
    self.calls = 0

  def prepare(self, rng, context):
    self.calls += 1
    return {self.name: rng.uniform(size=3)}


def make(workdir, *methods, given=None, seed=0):
  return assets.make(workdir, methods, seed, Context(), given)


def test_without_any_there_is_no_file(tmp_path):
  assert make(tmp_path, object()) is None
  assert not list(tmp_path.iterdir())


def test_a_resumed_run_reads_what_the_first_one_made(tmp_path):
  method = Draws()
  first = make(tmp_path, method, given={"names": np.arange(2)})
  again = make(tmp_path, method, given={"names": np.arange(2) + 7})
  assert method.calls == 1
  assert first.keys() == again.keys() == {"level", "names"}
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])


def test_methods_draw_from_streams_of_their_own(tmp_path):
  one, other = Draws("one"), Draws("other")
  found = make(tmp_path / "a", one, other)
  assert (found["one"] != found["other"]).all()
  again = make(tmp_path / "b", one, other, seed=1)
  assert (found["one"] != again["one"]).all()


def test_a_later_method_sees_the_assets_of_an_earlier_one(tmp_path):
  class Doubles:
    def prepare(self, rng, context):
      return {"double": 2 * context.assets["level"]}

  found = make(tmp_path, Draws(), Doubles())
  np.testing.assert_array_equal(found["double"], 2 * found["level"])


def test_one_name_for_two_assets_is_refused(tmp_path):
  with pytest.raises(UsageError, match="Draws.prepare makes an asset 'level'"):
    make(tmp_path, Draws(), Draws())


def test_a_damaged_file_is_named(tmp_path):
  make(tmp_path, Draws())
  path = tmp_path / assets.FILE_NAME
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(DfktError, match="assets.npz cannot be read"):
    make(tmp_path, Draws())
