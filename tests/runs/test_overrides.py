"""Settings on a command line: their spellings, values and refusals."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest

from dfkt_jax.contracts import Positive, Share
from dfkt_jax.errors import UsageError
from dfkt_jax.runs import old_spellings, overrides


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: Annotated[float, Share] = 0.5
  widths: Annotated[tuple[int, ...], Positive] = (4, 4)
  betas: tuple[float, float] = (0.5, 0.9)
  form: Literal["kl", "l1"] = "kl"


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  place: Path = Path("here")
  data: str | None = "digits/test"
  count: int | None = None
  offline: bool = False
  batch_size: int = 8


@pytest.mark.parametrize(
  ("word", "value"),
  [
    ("inner.rate=2", 2.0),
    ("inner.rate=1e-3", 1e-3),
    ("inner.rate=-1e-3", -1e-3),
    ("rate=2", 2.0),
    ("inner.widths=[1, 2, 3]", (1, 2, 3)),
    ("inner.widths=1 2 3", (1, 2, 3)),
    ("widths=7", (7,)),
    ("inner.betas=[0, 1]", (0.0, 1.0)),
    ("inner.betas=-0.5 0.9", (-0.5, 0.9)),
    ("inner.form=l1", "l1"),
    ("place=a/b", Path("a/b")),
    ("data=null", None),
    ("data=7", "7"),
    ("data=a=b", "a=b"),
    ("data=-a b", "-a b"),
    ("data=[1, 2]", "[1, 2]"),
    ('data="digits"', "digits"),
    ('data="a \\"b\\""', 'a "b"'),
    ('data="null"', "null"),
    ('data="', '"'),
    ('data="a"b"', '"a"b"'),
    ('place="a/b"', Path("a/b")),
    ('inner.form="l1"', "l1"),
    ("count=3", 3),
    ("count=null", None),
    ("offline=true", True),
    ("offline=False", False),
    ("batch-size=3", 3),
    ("batch_size=3", 3),
  ],
)
def test_values_become_what_the_field_holds(word, value):
  name = word.partition("=")[0].replace("-", "_")
  new = overrides.replaced(Outer(), [word])
  found = overrides.fields(new)
  if name in overrides.fields(Inner()):
    name = f"inner.{name}"
  assert found[name] == value
  assert type(found[name]) is type(value)
  others = {**overrides.fields(Outer()), name: value}
  assert found == others


@pytest.mark.parametrize(
  ("word", "said"),
  [
    ("inner.rate", "expected FIELD=VALUE"),
    ("outer.rate=1", "did you mean inner.rate?"),
    ("rat=1", "did you mean inner.rate?"),
    ("inner.ratte=1", "did you mean inner.rate"),
    ("inner=1", "no such field"),
    ("inner.rate=fast", "expected a number, such as 0.5"),
    ("inner.rate=true", "expected a number"),
    ("inner.form=l2", "expected one of kl, l1"),
    ("inner.widths=[1, 0.5]", "tuple"),
    ("inner.betas=[1]", "tuple"),
    ("inner.betas=null", "tuple"),
    ("count=1.5", "a whole number or null"),
    ("offline=1", "true or false"),
  ],
)
def test_what_does_not_fit_is_refused(word, said):
  with pytest.raises(UsageError) as error:
    overrides.replaced(Outer(), [word])
  assert said in str(error.value)
  assert word in str(error.value) or "no such field" in str(error.value)


def test_an_experiment_without_fields():
  with pytest.raises(UsageError, match="not a dataclass"):
    overrides.replaced(object(), ["a=1"])
  assert overrides.replaced(thing := object(), []) is thing


@pytest.mark.parametrize(
  ("args", "changes"),
  [
    (["--batch-size", "3"], {"batch_size": 3}),
    (["--batch_size=3", "--data", "x"], {"batch_size": 3, "data": "x"}),
    (["--rate", "-0.5", "--offline", "True"], {"rate": -0.5, "offline": True}),
    (
      ["--inner.widths", "1", "2", "--data=-x"],
      {"widths": (1, 2), "data": "-x"},
    ),
    (["--widths", "[1, 2]", "--count", "None"], {"widths": (1, 2)}),
    ([], {}),
  ],
)
def test_flags_are_the_same_settings(args, changes):
  found = overrides.fields(overrides.with_flags(Outer(), args))
  found = {name.rpartition(".")[2]: value for name, value in found.items()}
  old = overrides.fields(Outer())
  old = {name.rpartition(".")[2]: value for name, value in old.items()}
  assert found == {**old, **changes}


@pytest.mark.parametrize(
  ("args", "said"),
  [
    (["--rate", "fast"], "--rate fast: expected a number, such as 0.5"),
    (["--rate"], "--rate: expected a number"),
    (["--betas", "1"], "--betas 1: expected tuple"),
    (["--ratte", "1"], "--ratte: the experiment has no such field; did you"),
    (["rate", "1"], "'rate' is not a flag"),
  ],
)
def test_flags_that_do_not_fit_are_refused(args, said):
  with pytest.raises(UsageError) as error:
    overrides.with_flags(Outer(), args)
  assert said in str(error.value)


@dataclasses.dataclass(frozen=True)
class KD:
  lr: float = 0.1
  flip: bool = False


@dataclasses.dataclass(frozen=True)
class NoiseAdaptation:
  kd: KD = KD()
  noise_lr: float = 0.1
  denoise: float = 0.5


@dataclasses.dataclass(frozen=True)
class Fitting:
  lr: float = 0.1
  draws: int = 1


@dataclasses.dataclass(frozen=True)
class Source:
  fitting: Fitting = Fitting()
  sigma: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
  steps: int = 10
  batch_size: int = 4
  memory_size: int = 0


@dataclasses.dataclass(frozen=True)
class Distill:
  source: Source = Source()
  learner: KD | NoiseAdaptation = KD()
  recipe: Recipe = Recipe()
  seed: int = 0


def test_a_short_name_of_several_settings_is_refused():
  with pytest.raises(UsageError) as error:
    overrides.replaced(Distill(), ["lr=1"])
  assert "--set lr: the experiment has source.fitting.lr and learner.lr" in str(
    error.value
  )
  assert overrides.replaced(Distill(), ["fitting.lr=1"]).source.fitting.lr == 1


@pytest.mark.parametrize(
  ("old", "now"),
  [
    ("transfer.kd.steps", "recipe.steps"),
    ("transfer.kd.lr", "learner.lr"),
    ("transfer.pool_size", "recipe.memory_size"),
    ("transfer.batch_size", "recipe.batch_size"),
    ("study.kd.flip", "learner.flip"),
    ("study.batch_size", "recipe.batch_size"),
    ("course.steps", "recipe.steps"),
    ("method.sigma", "source.sigma"),
    ("method.fitting.draws", "source.fitting.draws"),
    ("method.kd.lr", "learner.lr"),
    ("method.kd.steps", "recipe.steps"),
    ("method.batch_size", "recipe.batch_size"),
    ("pool_size", "recipe.memory_size"),
  ],
)
def test_spellings_of_version_0_1_are_accepted(old, now, capsys):
  value = "true" if now == "learner.flip" else "1"
  new = overrides.replaced(Distill(), [f"{old}={value}"])
  assert overrides.fields(new) == {**overrides.fields(Distill()), now: 1}
  assert capsys.readouterr().err == f"dfkt: --set {old} is now {now}\n"


@pytest.mark.parametrize(
  ("old", "now"),
  [
    ("study.kd.lr", "learner.kd.lr"),
    ("method.noise_lr", "learner.noise_lr"),
    ("method.denoise", "learner.denoise"),
  ],
)
def test_settings_that_moved_to_a_learner_with_its_own_kd(old, now):
  known = overrides.fields(Distill(learner=NoiseAdaptation()))
  assert old_spellings.find_field(old, known) == now


def test_settings_of_no_version():
  known = overrides.fields(Distill())
  for name in ("transfer.kd.sigma", "course.lr", "method.seed", "sigma.steps"):
    assert old_spellings.find_field(name, known) is None


def test_flags_of_version_0_1(capsys):
  replace = old_spellings.replace_flags
  args = ["--pool-size", "8", "--lr=1"]
  assert replace(args, ["memory_size"]) == ["--memory-size", "8", "--lr=1"]
  assert capsys.readouterr().err == "dfkt: --pool-size is now --memory-size\n"
  assert replace(["--pool_size=8"], ["memory_size"]) == ["--memory-size=8"]
  # A method of one's own may have such a field.
  assert replace(args, ["memory_size", "pool_size"]) == args
  assert replace(args, ["steps"]) == args
