"""Checks that a class meets the contract of its kind (`contracts`)."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import difflib
import inspect
from typing import Any, Literal

from dfkt_jax.errors import UsageError

Kind = Literal["source", "synthesizer", "learner", "adapter"]

# What a kind is called in messages and in the usage of its command.
KIND_WORDS: Mapping[Kind, str] = {
  "source": "source",
  "synthesizer": "method",
  "learner": "learner",
  "adapter": "method",
}

# Parameters that methods of version 0.1 had.
_OLD_PARAMETERS = ("teacher", "kd", "course", "answers", "summary")
_SIMILAR = 0.8  # difflib's ratio of two names that are taken for one

# A contract that a method has to meet, with the protocols that may go with it.
_Contracts = Mapping[type, tuple[type, ...]]


def check(method: type, kind: Kind, about: str) -> None:
  """Check that a dataclass meets the contract of its kind.

  Raises:
    UsageError: it does not; the sentence names the function or the field.
  """
  if not method.__dataclass_params__.frozen:  # type: ignore
    raise UsageError(
      f"{about}: {method.__name__} is not frozen: decorate it with"
      " @dataclass(frozen=True)"
    )
  try:
    instance = method()
  except Exception as error:
    raise UsageError(
      f"{about}: {method.__name__} cannot be made without arguments ({error}):"
      " give every field a default"
    ) from error
  contracts = _contracts()[kind]
  own = dict(_functions(method))
  _check_names(own, _hooks(contracts), about)
  _check_version(own, about)
  met = {c: more for c, more in contracts.items() if isinstance(instance, c)}
  # A synthesizer may be a selector, too; that alone makes no images.
  required = list(contracts)[:1] if kind == "synthesizer" else list(contracts)
  if not any(contract in met for contract in required):
    names = _hooks(required[:1])
    missing = [name for name in names if name not in own]
    raise UsageError(
      f"{about} has no {' and no '.join(missing)}: the contract"
      f" {required[0].__name__} has {', '.join(names)} (dfkt_jax/contracts.py)"
    )
  _check_foreign(own, kind, met, about)
  for contract, more in met.items():
    for protocol in (contract, *more):
      if isinstance(instance, protocol):
        for name, function in _functions(protocol):
          _check_parameters(getattr(instance, name), name, function, about)


def _contracts() -> Mapping[Kind, _Contracts]:
  """Return the contracts of every kind of method; it has to meet one."""
  from dfkt_jax import contracts as c  # here and not above: it imports jax

  images = {
    c.Synthesizer: (c.Prepares, c.Restarts, c.Staged),
    c.Selector: (c.Prepares, c.Summarizes),
  }
  return {
    "source": images,
    "synthesizer": images,
    "learner": {c.Learner: (c.Prepares,)},
    "adapter": {c.Adapter: (c.Prepares, c.Relabels, c.PredictsOnline)},
  }


def _hooks(contracts: _Contracts | Iterable[type]) -> list[str]:
  """Return the names of the functions of contracts and what goes with them."""
  protocols = list(contracts)
  if isinstance(contracts, Mapping):
    protocols += [p for more in contracts.values() for p in more]
  return [name for protocol in protocols for name, _ in _functions(protocol)]


def _functions(kind: type) -> Iterator[tuple[str, Any]]:
  """Yield the public functions of a class and of its bases, with names."""
  fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
  left_out = {field.name for field in fields}
  for name, value in inspect.getmembers_static(kind):
    if name.startswith("_") or name in left_out or isinstance(value, type):
      continue
    if isinstance(value, staticmethod | classmethod):
      value = value.__func__
    if callable(value):
      yield name, value


def _check_names(own, hooks, about) -> None:
  """Refuse a function whose name is a hook's but for a letter."""
  for name in own:
    if name in hooks:
      continue
    close = difflib.get_close_matches(name, hooks, n=1, cutoff=_SIMILAR)
    if close and _differ_by_a_letter(name, close[0]):
      raise UsageError(
        f"{about} has a function {name!r}, which nothing calls: call it"
        f" {close[0]!r} if it is meant to be that of dfkt_jax/contracts.py, or"
        " else begin its name with an underscore"
      )


def _differ_by_a_letter(a: str, b: str) -> bool:
  """Return whether one letter is other, missing, or swapped with the next."""
  while a and b and a[0] == b[0]:
    a, b = a[1:], b[1:]
  while a and b and a[-1] == b[-1]:
    a, b = a[:-1], b[:-1]
  return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])


def _check_version(own, about) -> None:
  """Refuse a method of version 0.1."""
  for name in ("init", "step", "restart", "relabel"):
    if name not in own:
      continue
    names = _parameters(own[name])
    if any(old in names for old in _OLD_PARAMETERS):
      raise UsageError(
        f"{about}: {name}({', '.join(names)}) is of version 0.1; a method is"
        " now step(self, key, state, context), and what it reads is in"
        " context: see 'Add a method in one file' of CONTRIBUTING.md"
      )


def _check_foreign(own, kind: Kind, met: _Contracts, about) -> None:
  """Refuse a function that only methods of other contracts have."""
  known = _contracts()
  called = _hooks(met)
  for name in own:
    for contracts in (known[kind], *known.values()):
      for contract, more in contracts.items():
        if name in called or name not in _hooks({contract: more}):
          continue
        this = " and ".join(found.__name__ for found in met)
        raise UsageError(
          f"{about} has a function {name!r}, which nothing calls: it belongs"
          f" to the contract {contract.__name__}"
          f" ({', '.join(_hooks([contract]))}), and the class meets only"
          f" {this}; remove it, or begin its name with an underscore"
          " (dfkt_jax/contracts.py)"
        )


def _check_parameters(function, name, contract, about) -> None:
  """Refuse a bound function that cannot be called as the contract's is."""
  expected = _parameters(contract)
  try:
    inspect.signature(function).bind(*expected[1:])
  except ValueError:
    return  # a function of a compiled module, without a signature
  except TypeError as error:
    raise UsageError(
      f"{about}: {name} cannot be called as {name}({', '.join(expected[1:])})"
      f" ({error}): see dfkt_jax/contracts.py"
    ) from error


def _parameters(function) -> list[str]:
  try:
    return list(inspect.signature(function).parameters)
  except (TypeError, ValueError):
    return []
