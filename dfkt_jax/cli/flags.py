"""Command lines become dataclasses."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import sys
from typing import Annotated, Any, NamedTuple

from rich.console import Console
import tyro

from dfkt_jax.errors import UsageError
from dfkt_jax.runs import overrides

# Fields of nested dataclasses are flags like the others, and a bool has a
# value: --flip True.
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


class Choice(NamedTuple):
  """A flag that decides which other flags there are; see `option`."""

  name: str  # of the flag, without hyphens
  value: str
  known: Iterable[str]  # names that it may have
  text: str  # of its help

  def field(self) -> tuple[str, Any]:
    """Return a field for it, whose value is not read: --help shows it."""
    shown = tyro.conf.arg(help=self.text, metavar="|".join(self.known))
    return self.name, Annotated[str, shown]


def parse(
  kind: Any, command: str, args: Sequence[str], default: Any = None
) -> Any:
  """Fill a dataclass, and the dataclasses in its fields, from flags."""
  extra = {} if default is None else {"default": default}
  prog = f"dfkt {command}"
  return tyro.cli(kind, prog=prog, args=args, config=_CONFIG, **extra)


def parse_known(
  kind: Any, command: str, args: Sequence[str]
) -> tuple[Any, list[str]]:
  """Fill a dataclass from its flags; return it and the other words."""
  return tyro.cli(
    kind,
    prog=f"dfkt {command}",
    args=args,
    config=_CONFIG,
    return_unknown_args=True,
  )


def print_plain(text: str) -> None:
  """Print text as it is, without colors and markup."""
  Console(soft_wrap=True).print(text, markup=False, highlight=False)


def method_name(
  command: str,
  args: Sequence[str],
  known: Iterable[str],
  word: str = "method",
  others: Mapping[str, Iterable[str]] | None = None,
) -> tuple[str, list[str]]:
  """Return the method, which is first or after --method, and the other words.

  Args:
    word: what messages and --help call it.
    others: the names that more such flags may have, for --help.

  Raises:
    UsageError: there is no method.
  """
  own = f"path/to/file.py:ClassName for a {word} of your own"
  method, args = option("--method", args)
  if method:
    return method, args
  if args and not args[0].startswith("-"):
    return args[0], args[1:]
  names = ", ".join(known)
  if args[:1] in (["-h"], ["--help"]):
    upper, others = word.upper(), others or {}
    usage = [upper, *(f"[--{name} {name.upper()}]" for name in others)]
    lines = [f"{upper} is one of {names}, or {own}."]
    lines += [
      f"{name.upper()} is one of {', '.join(values)}, or"
      f" path/to/file.py:ClassName; by default that of the {word}'s paper."
      for name, values in others.items()
    ]
    lines += [f"'dfkt {command} {upper} --help' lists its flags."]
    print_plain(f"usage: dfkt {command} {' '.join(usage)} ...\n")
    print_plain("\n".join(lines))
    sys.exit(0)
  raise UsageError(
    f"dfkt {command} needs a {word} first: one of {names}, or"
    " path/to/file.py:ClassName"
  )


def check_names(
  about: str, part: Any, others: Iterable[tuple[str, Any]]
) -> None:
  """Refuse a method or a learner two of whose flags would be the same.

  Its own fields may clash, those of a dataclass in a field included, or a field
  of its and a flag of something else.

  Args:
    about: what `part`, a dataclass, is called.
    others: dataclasses or their types, each after what it is called.

  Raises:
    UsageError: the sentence names the field, or both fields.
  """
  own: dict[str, str] = {}
  for path in _paths(part):
    name = _flag(path)
    if name in own:
      raise UsageError(
        f"{about} has the fields {own[name]} and {path}, which would both be"
        f" --{name.replace('_', '-')}: rename one of them"
      )
    own[name] = path
  for what, other in others:
    taken = set(map(_flag, _paths(other)))
    clashing = [name for name in own if name in taken]
    if clashing:
      raise UsageError(
        f"{about} has a field {clashing[0]!r}, which is a flag of {what} too:"
        " rename the field"
      )


def _paths(value: Any) -> list[str]:
  """Return the dotted fields of a dataclass, or the names of a type's."""
  if isinstance(value, type):
    return [field.name for field in dataclasses.fields(value)]
  return list(overrides.fields(value))


def _flag(path: str) -> str:
  """Return the flag of a dotted field, as a name."""
  return path.rpartition(".")[2]


def option(flag: str, args: Sequence[str]) -> tuple[str | None, list[str]]:
  """Return the value of a flag that decides which others there are.

  Returns:
    The value, None where the flag is not given; and the other words.

  Raises:
    UsageError: it is given twice.
  """
  args = [
    word
    for arg in args
    for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
  ]
  if flag not in args[:-1]:
    return None, args
  if args.count(flag) > 1:
    raise UsageError(f"{flag} is given {args.count(flag)} times: give it once")
  place = args.index(flag)
  return args[place + 1], args[:place] + args[place + 2 :]


def collect_repeated(flag: str, args: Sequence[str]) -> list[str]:
  """Return the words with all values of a repeated flag after one flag."""
  others: list[str] = []
  values: list[str] = []
  place = others
  for arg in args:
    if arg == flag:
      place = values
    elif arg.startswith(f"{flag}="):
      values.append(arg.removeprefix(f"{flag}="))
      place = others
    else:
      place = others if arg.startswith("--") else place
      place.append(arg)
  return [*others, flag, *values] if values else others
