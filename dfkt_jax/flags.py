"""The words of a command line into dataclasses."""

from collections.abc import Iterable
import dataclasses
import sys
from typing import Any

from rich.console import Console
import tyro

from dfkt_jax.errors import UsageError


def parse(kind: Any, command: str, args: list[str], default: Any = None):
  """Fills a dataclass from flags, its nested dataclasses included."""
  extra = {} if default is None else {"default": default}
  return tyro.cli(
    kind,
    prog=f"dfkt {command}",
    args=args,
    config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    **extra,
  )


def say(text: str) -> None:
  """Prints it as it is."""
  Console(soft_wrap=True).print(text, markup=False, highlight=False)


def method_name(
  command: str, args: list[str], known: Iterable[str]
) -> tuple[str, list[str]]:
  """The method, which comes first or behind --method; and the other words."""
  method, args = option("--method", args, "")
  if method:
    return method, args
  if args and not args[0].startswith("-"):
    return args[0], args[1:]
  names = ", ".join(known)
  if args[:1] in (["-h"], ["--help"]):
    say(
      f"usage: dfkt {command} METHOD ...\n\nMETHOD is one of {names}, or"
      " path/to/file.py:ClassName for one of your own.\n"
      f"'dfkt {command} METHOD --help' lists its flags."
    )
    sys.exit(0)
  raise UsageError(
    f"dfkt {command} needs a method first: one of {names}, or"
    " path/to/file.py:ClassName"
  )


def default(method: type, *others: type) -> Any:
  """The method by its defaults, once its flags clash with no other's."""
  taken = {f.name for other in others for f in dataclasses.fields(other)}
  clashing = [f.name for f in dataclasses.fields(method) if f.name in taken]
  if clashing:
    raise UsageError(
      f"method {method.__name__} has a field {clashing[0]!r}, which is a flag"
      " of the command too: rename the field"
    )
  try:
    return method()
  except TypeError as error:
    raise UsageError(
      f"method {method.__name__} cannot be made without arguments ({error}):"
      " give every field a default"
    ) from error


def option(flag: str, args: list[str], default: str) -> tuple[str, list[str]]:
  """The value of a flag that decides what the others mean; and the others."""
  args = [
    word
    for arg in args
    for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
  ]
  if flag not in args[:-1]:
    return default, args
  place = args.index(flag)
  return args[place + 1], args[:place] + args[place + 2 :]


def gathered(flag: str, args: list[str]) -> list[str]:
  """`args`, with all that stands behind `flag`, once or often, in one place."""
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
