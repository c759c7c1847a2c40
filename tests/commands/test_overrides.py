"""FIELD=VALUE words: what they may say, and what they are told otherwise."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from dfkt_jax.commands import overrides
from dfkt_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  widths: tuple[int, ...] = (4, 4)
  betas: tuple[float, float] = (0.5, 0.9)
  form: Literal["kl", "l1"] = "kl"


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  place: Path = Path("here")
  data: str | None = "digits/test"
  count: int | None = None
  offline: bool = False


@pytest.mark.parametrize(
  ("word", "value"),
  [
    ("inner.rate=2", 2.0),
    ("inner.rate=1e-3", 1e-3),
    ("inner.widths=[1, 2, 3]", (1, 2, 3)),
    ("inner.betas=[0, 1]", (0.0, 1.0)),
    ("inner.form=l1", "l1"),
    ("place=a/b", Path("a/b")),
    ("data=null", None),
    ("data=7", "7"),
    ("data=a=b", "a=b"),
    ("count=3", 3),
    ("offline=true", True),
  ],
)
def test_values_become_what_the_field_holds(word, value):
  name = word.partition("=")[0]
  new = overrides.replaced(Outer(), [word])
  found = overrides.fields(new)
  assert found[name] == value
  assert type(found[name]) is type(value)
  others = {**overrides.fields(Outer()), name: value}
  assert found == others


@pytest.mark.parametrize(
  ("word", "said"),
  [
    ("inner.rate", "expected FIELD=VALUE"),
    ("rate=1", "did you mean inner.rate?"),
    ("inner.ratte=1", "did you mean inner.rate"),
    ("inner=1", "no such field"),
    ("inner.rate=fast", "expected a number, such as 0.5"),
    ("inner.rate=true", "expected a number"),
    ("inner.form=l2", "expected one of kl, l1"),
    ("inner.widths=[1, 0.5]", "tuple"),
    ("inner.betas=[1]", "tuple"),
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
  with pytest.raises(UsageError, match="no dataclass"):
    overrides.replaced(object(), ["a=1"])
  assert overrides.replaced(thing := object(), []) is thing
