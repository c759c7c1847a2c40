"""Bounds are written at the fields, and every number has some."""

from collections.abc import Iterator
import dataclasses
import math
import typing
from typing import Annotated, Any

import pytest

from dfkt_jax import adaptation, distillation, methods
from dfkt_jax.adaptation.recipe import Recipe as AdaptationRecipe
from dfkt_jax.commands.adapt import Adapt
from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.commands.train import TrainTeacher
from dfkt_jax.contracts import (
  HasLearner,
  HasRecipe,
  NonNegative,
  Positive,
  PositiveShare,
  Seed,
  Share,
)
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.supervised import RECIPES, Supervised
from dfkt_jax.errors import UsageError
from dfkt_jax.runs import checks
from dfkt_jax.runs.driver import RunOptions

# Version 0.1 had its bounds by flag: of its own methods, what is no setting at
# 0, and what is a share of a whole. All other numbers were 0 or more.
ABOVE_ZERO = {
  "--angle-images",
  "--betas",
  "--candidates",
  "--classes-per-step",
  "--discriminator-widths",
  "--draws",
  "--draws-per-class",
  "--epsilon",
  "--generator-batch-size",
  "--generator-width",
  "--generator-widths",
  "--kept-classes",
  "--latent",
  "--memory-updates",
  "--mixup-alpha",
  "--neighbours",
  "--projection-width",
  "--prototypes-per-class",
  "--queue-size",
  "--sigma",
  "--smallest-crop",
  "--steps-per-batch",
  "--translator-width",
}
SHARES = {
  "--adapt-share",
  "--assumed-accuracy",
  "--blur",
  "--denoise",
  "--distance-threshold",
  "--early-momentum",
  "--grey",
  "--half-size-share",
  "--head-share",
  "--memory-momentum",
  "--mix",
  "--momentum-decay",
  "--pretrain-share",
  "--salt-and-pepper",
  "--shrink",
  "--smallest-crop",
  "--start-level",
  "--sure-first",
  "--sure-last",
  "--transfer-share",
  "--translate-share",
  "--tuning-share",
}


def instances() -> Iterator[Any]:
  """Yield all methods, learners and recipes, the ones inside others too."""
  known = (methods.SOURCES, methods.LEARNERS, methods.ADAPTERS)
  found = [e.load()() for entries in known for e in entries.values()]
  found += [Recipe(), AdaptationRecipe(), *RECIPES.values()]
  while found:
    value = found.pop()
    yield value
    if isinstance(value, HasRecipe):
      found.append(value.recipe)
    if isinstance(value, HasLearner):
      found.append(value.learner)
    inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    found += [part for part in inner if dataclasses.is_dataclass(part)]


EXPERIMENTS = {Adapt, Distill, Synthesize, TrainTeacher, RunOptions}
KINDS = sorted(
  {type(value) for value in instances()} | EXPERIMENTS, key=lambda k: k.__name__
)


def numbers(kind: type) -> list[str]:
  """Return the fields of a dataclass that hold numbers."""

  def holds_number(hint):
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
      return holds_number(inner[0])
    if typing.get_origin(hint) is typing.Literal:
      return False
    return hint in (int, float) or any(map(holds_number, inner))

  hints = typing.get_type_hints(kind, include_extras=True)
  return [
    f.name for f in dataclasses.fields(kind) if holds_number(hints[f.name])
  ]


def test_the_walk_finds_all_of_our_methods():
  modules = {kind.__module__ for kind in KINDS}
  for package in (adaptation, distillation):
    assert any(module.startswith(package.__name__) for module in modules)
  assert {Supervised, Recipe, AdaptationRecipe} <= set(KINDS)
  assert sum(len(numbers(kind)) for kind in KINDS) > 150


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_has_bounds(kind):
  bounds = checks.bounds(kind)
  missing = [name for name in numbers(kind) if len(bounds[name]) != 1]
  assert missing == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_bound_of_version_0_1_is_lost(kind):
  for name in numbers(kind):
    (bounds,) = checks.bounds(kind)[name]
    flag = f"--{name.replace('_', '-')}"
    assert bounds.low >= 0, flag
    if flag in ABOVE_ZERO or flag.endswith("temperature"):
      assert not bounds.holds(0), flag
    if flag in SHARES:
      assert bounds.high == 1, flag


def test_the_flags_of_version_0_1_are_still_there():
  flags = {f"--{n.replace('_', '-')}" for kind in KINDS for n in numbers(kind)}
  assert flags >= ABOVE_ZERO
  assert flags >= SHARES


def test_defaults_and_recipes_of_papers_are_within_their_bounds():
  for value in instances():
    checks.check(value)


@dataclasses.dataclass(frozen=True)
class Inner:
  lr: Annotated[float, NonNegative] = 0.1
  widths: Annotated[tuple[int, ...], Positive] = (4, 4)


@dataclasses.dataclass(frozen=True)
class Method:
  inner: Inner = Inner()
  mix: Annotated[float, Share] = 0.0
  crop: Annotated[float, PositiveShare] = 1.0
  sigma: Annotated[float, Positive] = 1.0
  steps: Annotated[int | None, Positive] = None
  betas: tuple[Annotated[float, Share], Annotated[float, Share]] = (0.5, 0.9)
  plain: float = 0.0  # without bounds
  names: tuple[str, ...] = ()
  flip: Annotated[bool, Positive] = False
  seed: Annotated[int, Seed] = 0


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"mix": 1, "crop": 1.0, "steps": 1, "seed": 2**63 - 1},
    {"mix": 0.0, "crop": 1e-9, "sigma": 1e-9, "steps": None},
    {"plain": -5.0, "inner": Inner(lr=0, widths=(1,))},
    {"inner": Inner(widths=())},
  ],
)
def test_numbers_that_can_be(changes):
  checks.check(dataclasses.replace(Method(), **changes))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"inner": Inner(lr=-1)}, "--lr is -1: give 0 or more"),
    ({"inner": Inner(lr=-1.0)}, "--lr is -1: give 0 or more"),
    ({"mix": 2}, "--mix is 2: it is a share, give 0 to 1"),
    ({"mix": -0.1}, "--mix is -0.1: it is a share, give 0 to 1"),
    ({"crop": 0.0}, "--crop is 0: it is a share, give above 0, at most 1"),
    ({"crop": 1.5}, "--crop is 1.5: it is a share, give above 0, at most 1"),
    ({"sigma": 0}, "--sigma is 0: give a number above 0"),
    ({"steps": 0}, "--steps is 0: give a number above 0"),
    ({"inner": Inner(widths=(4, 0))}, "--widths is 0: give a number above 0"),
    ({"inner": Inner(widths=(4, -4))}, "--widths is -4: give a number above 0"),
    ({"betas": (0.5, 1.5)}, "--betas is 1.5: it is a share, give 0 to 1"),
    ({"plain": math.nan}, "--plain is nan: give a finite number"),
    ({"mix": math.inf}, "--mix is inf: give a finite number"),
    ({"inner": Inner(lr=-math.inf)}, "--lr is -inf: give a finite number"),
    ({"seed": -1}, f"--seed is -1: give 0 to {2**63 - 1}"),
    ({"seed": 2**63}, f"--seed is {2**63}: give 0 to {2**63 - 1}"),
    ({"seed": 10**400}, "--seed is 1000"),
  ],
)
def test_numbers_that_cannot_be(changes, said):
  with pytest.raises(UsageError) as error:
    checks.check(dataclasses.replace(Method(), **changes))
  assert said in str(error.value)


def test_a_tuple_of_ours_has_an_item():
  for value in instances():
    for field in dataclasses.fields(value):
      if isinstance(getattr(value, field.name), tuple):
        empty = dataclasses.replace(value, **{field.name: ()})
        flag = f"--{field.name.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{flag} has no value: give one"):
          checks.check(empty)


def test_an_experiment_that_is_not_a_dataclass_has_no_numbers():
  checks.check(object())
