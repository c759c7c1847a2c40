"""The one place that decides how loops and choices are compiled.

On accelerators a round is one program and its inner loops are `lax.scan`. On
CPU they are not: XLA:CPU runs convolutions inside a `while` several times
slower than outside (`dfkt bench loops` measures it, docs/performance.md has the
figures), so there each step is a program of its own and Python loops.

With choices it is the same: convolutions in a branch of `lax.cond` took 100
times as long on CPU (13.5 s instead of 0.13 s for the gradient of three layers,
one core, jax 0.10). There both sides are computed and one of them is taken.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
# body(carry, index, *constants) -> (carry, info)
Body = Callable[..., tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Loops:
  """How to compile: `rolled` is one program with scans, else one a step."""

  rolled: bool

  @classmethod
  def for_backend(cls) -> "Loops":
    return cls(rolled=jax.default_backend() != "cpu")

  def whole(self, function: Callable) -> Callable:
    """Compiles what contains loops; its first argument is donated."""
    if self.rolled:
      return jax.jit(function, donate_argnums=0)
    return function

  def stage(self, function: Callable, donate: int | None = None) -> Callable:
    """Compiles a piece between loops."""
    if self.rolled:
      return function
    return jax.jit(function, donate_argnums=() if donate is None else donate)

  def repeat(self, body: Body, count: int) -> Body:
    """A function that applies `body` for indices start .. start + count - 1.

    Returns f(carry, start, *constants) -> (carry, infos), `infos` with every
    leaf stacked along a new leading axis of length `count`. The carry is
    donated.
    """
    if self.rolled:

      def rolled(carry, start, *constants):
        indices = start + jnp.arange(count)
        step = lambda carry, index: body(carry, index, *constants)
        return jax.lax.scan(step, carry, indices)

      return rolled

    step = jax.jit(body, donate_argnums=0)

    def unrolled(carry, start, *constants):
      infos = []
      for index in range(count):
        carry, info = step(carry, start + index, *constants)
        infos.append(info)
      return carry, _stack(infos)

    return unrolled


@jax.jit
def _stack(infos):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)


def when(
  predicate: jax.Array, function: Callable[..., PyTree], idle: PyTree, *operands
) -> PyTree:
  """function(*operands) where `predicate`, bool[], holds, else `idle`.

  `idle` has the structure of the answer. On accelerators `function` costs
  nothing where it does not hold.
  """
  if jax.default_backend() != "cpu":
    return jax.lax.cond(predicate, function, lambda *_: idle, *operands)
  return choose(predicate, function(*operands), idle)


def choose(predicate: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
  """`yes` where `predicate`, bool[], holds, else `no`; both are computed."""
  return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), yes, no)
