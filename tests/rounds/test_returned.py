"""What a user's own functions return, checked while jax traces them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from dfkt_jax.contracts import Batch, step_functions, unlabelled
from dfkt_jax.devices.loops import Loops
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.errors import UsageError
from dfkt_jax.rounds import distil
from dfkt_jax.rounds.returned import check_sample, check_state, check_step
from tests.networks import tiny

KEY = jax.random.key(0)


class State(NamedTuple):
  shade: jax.Array
  count: jax.Array


class Info(NamedTuple):
  loss: jax.Array


class Grey:
  """A synthesizer whose state and info are what a user would write."""

  def init(self, key, context):
    return State(jnp.zeros(3), jnp.zeros((), int))

  def step(self, key, state, context):
    return state, Info(jnp.zeros(()))

  def sample(self, key, state, count):
    return unlabelled(jnp.zeros((count, 8, 8, 1)))


STATE = Grey().init(KEY, None)
INFO = Info(jnp.zeros(()))


@pytest.mark.parametrize(
  ("returned", "words"),
  [
    (None, "returned None: return (state, info)"),
    (STATE, "returned a State: return"),
    ((STATE, INFO, INFO), "returned a tuple of 3"),
    ((tuple(STATE), INFO), "a tuple of 2 as the state"),
    ((STATE._replace(shade=jnp.zeros(4)), INFO), "shade is float32[4] and was"),
    ((STATE._replace(count=jnp.zeros(())), INFO), "count is float32[] and was"),
    ((STATE, Info(jnp.zeros(5))), "loss has the shape (5,)"),
  ],
)
def test_a_step_that_returns_something_else(returned, words):
  with pytest.raises(UsageError) as caught:
    check_step(Grey(), STATE, returned)
  assert str(caught.value).startswith("Grey: step returned")
  assert words in str(caught.value)


def test_what_a_step_should_return_passes():
  assert check_step(Grey(), STATE, (STATE, INFO)) == (STATE, INFO)
  assert check_state(Grey(), "relabel", STATE, STATE) is STATE


@pytest.mark.parametrize(
  ("returned", "words"),
  [
    (jnp.zeros((2, 8, 8, 1)), "an array float32[2, 8, 8, 1]: return a Batch"),
    (Batch(jnp.zeros((2, 8, 8, 1), jnp.uint8)), "images of uint8[2, 8, 8, 1]"),
    (Batch(jnp.zeros((2, 64))), "images of float32[2, 64]"),
  ],
)
def test_a_sample_that_is_no_batch_of_images(returned, words):
  with pytest.raises(UsageError, match="Grey: sample returned") as caught:
    check_sample(Grey(), returned)
  assert words in str(caught.value)


@pytest.mark.parametrize("function", ["step", "sample", "restart", "learner"])
@pytest.mark.parametrize("rolled", [False, True])
def test_a_round_refuses_them(function, rolled):
  source, learner = Grey(), KD()
  recipe = Recipe(steps=2, batch_size=8, memory_size=16)
  if function == "step":
    source.step = lambda key, state, context: state
  if function == "sample":
    recipe = Recipe(steps=2, batch_size=8)
    source.sample = lambda key, state, count: jnp.zeros((count, 8, 8, 1))
  if function == "restart":
    source.restart = lambda key, state, context: state.shade
  state = distil.init(KEY, source, learner, recipe, tiny(), tiny(1))
  if function == "learner":

    class Forgetful(KD):
      def step(self, key, state, context):
        return super().step(key, state, context)[0]

    learner = Forgetful()
  step = distil.make_round(source, learner, recipe, Loops(rolled))
  name = "step" if function == "learner" else function
  with pytest.raises(UsageError, match=f"{name} returned"):
    step(state, 0, KEY, tiny(), None, None)


@pytest.mark.parametrize("counts", [[1, 2], [4], []])
def test_stages_take_the_steps_that_are_asked_for(counts):
  source = Grey()
  source.stages = lambda steps: [(source.step, count) for count in counts]
  with pytest.raises(UsageError, match=r"Grey: stages\(5\) returned"):
    step_functions(source, 5)
  source.stages = lambda steps: [source.step]
  with pytest.raises(UsageError, match="no pairs: return"):
    step_functions(source, 5)
