"""Settings of an experiment that words of a command line replace.

A setting is spelled alike everywhere: as its flag in `dfkt distill --help`,
such as lr or batch-size, or by its dotted path, such as learner.lr. tyro parses
the values, of FIELD=VALUE words as of flags.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import io
import json
from pathlib import Path
import types
import typing
from typing import Annotated, Any, Literal, Union

import tyro

from dfkt_jax.errors import UsageError
from dfkt_jax.runs import old_spellings


def replaced(experiment: Any, words: Sequence[str], flag: str = "--set") -> Any:
  """Return the experiment with the settings of FIELD=VALUE words.

  VALUE is text as a flag takes it: 3, 0.5, true, null, digits/test, and for a
  tuple [1, 2] or "1 2". A JSON string stands for the text inside it.

  Raises:
    UsageError: the experiment has no such field, or the value does not fit it.
  """
  for word in words:
    name, equals, text = word.partition("=")
    if not equals:
      raise UsageError(
        f"{flag} {word}: expected FIELD=VALUE, such as learner.lr=0.1"
      )
    path = _find(experiment, name, f"{flag} {name}")
    field = _field(experiment, path)
    values = _split(field.kind, text)
    value = _parse(field, values, f"{flag} {word}")
    experiment = _with(experiment, path.split("."), value)
  return experiment


def with_flags(experiment: Any, args: Sequence[str]) -> Any:
  """Return the experiment with the settings of flags, such as --lr 0.1.

  Raises:
    UsageError: the experiment has no such field, or the value does not fit it.
  """
  for flag, values in _groups(args):
    path = _find(experiment, flag.removeprefix("--"), flag)
    field = _field(experiment, path)
    if len(values) == 1:
      values = _split(field.kind, values[0])
    value = _parse(field, values, " ".join([flag, *values]))
    experiment = _with(experiment, path.split("."), value)
  return experiment


def fields(value: Any, prefix: str = "") -> dict[str, Any]:
  """Return a dataclass's values by dotted path, nested dataclasses included."""
  found = {}
  for field in dataclasses.fields(value):
    if not field.init:
      continue
    inner = getattr(value, field.name)
    if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
      found |= fields(inner, f"{prefix}{field.name}.")
    else:
      found[prefix + field.name] = inner
  return found


def _groups(args) -> list[tuple[str, list[str]]]:
  """--a 1 2 --b=3 -> [(--a, [1, 2]), (--b, [3])]."""
  groups: list[tuple[str, list[str]]] = []
  for arg in args:
    if arg.startswith("--"):
      flag, equals, value = arg.partition("=")
      groups.append((flag, [value] if equals else []))
    elif groups:
      groups[-1][1].append(arg)
    else:
      raise UsageError(f"{arg!r} is not a flag: give --FIELD VALUE")
  return groups


def _find(experiment, name, word) -> str:
  """The dotted path of the field that a word names."""
  is_record = dataclasses.is_dataclass(experiment)
  known = list(fields(experiment)) if is_record else []
  plain = name.replace("-", "_")
  if plain in known:
    return plain
  matching = [path for path in known if path.endswith(f".{plain}")]
  if len(matching) > 1:
    raise UsageError(
      f"{word}: the experiment has {' and '.join(matching)}: name one by its"
      " whole path"
    )
  if matching:
    return matching[0]
  renamed = old_spellings.find_field(plain, known)
  if renamed is not None:
    old_spellings.report(word, renamed)
    return renamed
  last = plain.rpartition(".")[2]
  close = [path for path in known if path.rpartition(".")[2] == last]
  close = close or difflib.get_close_matches(plain, known, n=2)
  if not close:
    short = {path.rpartition(".")[2]: path for path in known}
    close = [short[n] for n in difflib.get_close_matches(plain, short, n=2)]
  hint = f"did you mean {' or '.join(close)}? " if close else ""
  raise UsageError(
    f"{word}: the experiment has no such field; {hint}expected one of"
    f" {', '.join(known) or 'none, as it is not a dataclass'}"
  )


@dataclasses.dataclass(frozen=True)
class _Field:
  kind: Any  # the annotation
  value: Any  # as it is now


def _field(experiment, path) -> _Field:
  *outer, last = path.split(".")
  for name in outer:
    experiment = getattr(experiment, name)
  hints = typing.get_type_hints(type(experiment), include_extras=True)
  value, kind = getattr(experiment, last), hints[last]
  if kind is Any or isinstance(kind, typing.TypeVar):
    kind = str if value is None else type(value)
  return _Field(kind, value)


def _with(value, path, new):
  first, *rest = path
  if rest:
    new = _with(getattr(value, first), rest, new)
  return dataclasses.replace(value, **{first: new})


def _split(kind: Any, text: str) -> list[str]:
  """The words that a flag of this kind would have for VALUE."""
  options = _options(kind)
  if text == "null" and type(None) in options:
    return ["None"]
  if text in ("true", "false") and bool in options:
    return [text.capitalize()]
  if not any(typing.get_origin(option) is tuple for option in options):
    return [_unquote(text)]
  try:
    return _leaves(json.loads(text))
  except ValueError:
    return text.split()


def _unquote(text: str) -> str:
  """Return the text of a JSON string; any other text stays as it is."""
  if len(text) < 2 or not (text[0] == text[-1] == '"'):
    return text
  try:
    return json.loads(text)
  except ValueError:
    return text


def _leaves(value) -> list[str]:
  if isinstance(value, list):
    return [leaf for item in value for leaf in _leaves(item)]
  return [str(value)]


def _parse(field: _Field, words: Sequence[str], about: str) -> Any:
  """The value that tyro makes of a flag's words."""
  record = dataclasses.make_dataclass("Setting", [("value", field.kind)])
  # A single word may begin with a hyphen.
  args = [f"--value={words[0]}"] if len(words) == 1 else ["--value", *words]
  silent = io.StringIO()
  try:
    with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
      return tyro.cli(
        record,
        args=args,
        config=(tyro.conf.FlagConversionOff,),
        console_outputs=False,
      ).value
  except SystemExit:
    example = json.dumps(field.value, default=str)
    raise UsageError(
      f"{about}: expected {_describe(field.kind)}, such as {example}"
    ) from None


def _options(kind) -> tuple[Any, ...]:
  """The members of a union, or the kind itself; without annotations."""
  if typing.get_origin(kind) is Annotated:
    return _options(typing.get_args(kind)[0])
  if typing.get_origin(kind) in (Union, types.UnionType):
    return tuple(o for a in typing.get_args(kind) for o in _options(a))
  return (kind,)


def _describe(kind) -> str:
  names = {int: "a whole number", float: "a number", str: "text"}
  names |= {bool: "true or false", type(None): "null", Path: "a path"}
  return " or ".join(
    f"one of {', '.join(map(str, typing.get_args(option)))}"
    if typing.get_origin(option) is Literal
    else names.get(option, str(option))
    for option in _options(kind)
  )
