"""FIELD=VALUE words that replace fields of an experiment."""

from collections.abc import Sequence
import dataclasses
import difflib
import json
from pathlib import Path
import types
import typing
from typing import Any, Literal, Union

from dfkt_jax.errors import UsageError


def replaced(experiment: Any, words: Sequence[str], flag: str = "--set") -> Any:
  """The experiment, a dataclass, with fields such as method.sigma replaced.

  Values are JSON, or else text: 3, 0.5, true, null, [1, 2], digits/test.

  Raises:
    UsageError: there is no such field, or the value is none for it.
  """
  for word in words:
    name, equals, text = word.partition("=")
    if not equals:
      raise UsageError(
        f"{flag} {word}: expected FIELD=VALUE, such as transfer.kd.lr=0.1"
      )
    experiment = _replace(experiment, name, text, flag)
  return experiment


def fields(value: Any, prefix: str = "") -> dict[str, Any]:
  """Every field of a dataclass and of those inside it, by its dotted name."""
  found = {}
  for field in dataclasses.fields(value):
    inner = getattr(value, field.name)
    if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
      found |= fields(inner, f"{prefix}{field.name}.")
    else:
      found[prefix + field.name] = inner
  return found


def _replace(experiment, name, text, flag):
  known = fields(experiment) if dataclasses.is_dataclass(experiment) else {}
  if name not in known:
    last = name.rpartition(".")[2]
    close = [other for other in known if other.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(
      f"{flag} {name}: the experiment has no such field; {hint}expected one of"
      f" {', '.join(known) or 'none, as it is no dataclass'}"
    )
  return _with(experiment, name.split("."), text, f"{flag} {name}={text}")


def _with(value, path, text, word):
  first, *rest = path
  if rest:
    new = _with(getattr(value, first), rest, text, word)
  else:
    kind = typing.get_type_hints(type(value)).get(first, Any)
    new = _converted(kind, getattr(value, first), text, word)
  return dataclasses.replace(value, **{first: new})


def _converted(kind, now, text, word):
  try:
    value = json.loads(text)
  except ValueError:
    value = text
  # Text stays text, whatever it would be as JSON: 7 may be a name.
  for candidate in (value, text):
    for option in _options(kind):
      fits, answer = _fit(option, candidate)
      if fits:
        return answer
  example = json.dumps(now, default=str)
  raise UsageError(f"{word}: expected {_describe(kind)}, such as {example}")


def _options(kind):
  if typing.get_origin(kind) in (Union, types.UnionType):
    return typing.get_args(kind)
  return (kind,)


def _fit(kind, value) -> tuple[bool, Any]:
  origin = typing.get_origin(kind)
  if kind is Any or isinstance(kind, typing.TypeVar):
    return True, value
  if origin is Literal:
    return value in typing.get_args(kind), value
  if kind is type(None):
    return value is None, None
  if kind is Path:
    return isinstance(value, str), Path(str(value))
  if kind is float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number, float(value) if number else None
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool), value
  if origin is tuple:
    if not isinstance(value, list):
      return False, None
    inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
    several = len(inner) == 1 and Ellipsis in typing.get_args(kind)
    kinds = inner * len(value) if several else inner
    if len(kinds) != len(value):
      return False, None
    fitted = [_fit(k, v) for k, v in zip(kinds, value)]
    return all(ok for ok, _ in fitted), tuple(v for _, v in fitted)
  return isinstance(kind, type) and isinstance(value, kind), value


def _describe(kind):
  names = {int: "a whole number", float: "a number", str: "text"}
  names |= {bool: "true or false", type(None): "null", Path: "a path"}
  return " or ".join(
    f"one of {', '.join(map(str, typing.get_args(option)))}"
    if typing.get_origin(option) is Literal
    else names.get(option, str(option))
    for option in _options(kind)
  )
