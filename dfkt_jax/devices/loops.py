"""The only place that decides how loops and conditionals are compiled.

On accelerators a round is one program and its inner loops are `lax.scan`. XLA
on CPU runs convolutions inside a `while` several times slower than outside
(`dfkt bench loops` measures it, docs/performance.md has the figures). There
each step is a program of its own and Python loops over them.

`lax.cond` has the same problem: convolutions in a branch took 100 times as long
on CPU (13.5 s instead of 0.13 s for the gradient of three layers, one core, jax
0.10). There both branches are computed and one result is selected (`cond`).

A loop inside a step (`scan`) cannot be one program a part, because the step is
one program. On CPU it is unrolled.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax.devices.sharding import platform

PyTree = Any
# The largest number of unfinished steps on a CPU of several devices. XLA:CPU
# takes up to 32 programs a device. The launch of one more blocks a thread that
# the other devices need to reach their all-reduce: a deadlock.
MAX_STEPS_IN_FLIGHT = 8
# body(carry, index, *constants) -> (carry, info)
Body = Callable[..., tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Loops:
  """A way to compile loops.

  `rolled` makes one program with scans; without it every step is a program.
  """

  rolled: bool

  @classmethod
  def for_backend(cls) -> "Loops":
    """Return the way for the current mesh's platform, or JAX's default."""
    return cls(rolled=platform() != "cpu")

  def jit_round(self, function: Callable) -> Callable:
    """Compile a function with loops inside; its first argument is donated."""
    if self.rolled:
      return jax.jit(function, donate_argnums=0)
    return function

  def jit_piece(
    self, function: Callable, donate: int | None = None
  ) -> Callable:
    """Compile a function between loops; `donate` numbers an argument."""
    if self.rolled:
      return function
    return jax.jit(function, donate_argnums=() if donate is None else donate)

  def repeat(self, body: Body, count: int) -> Body:
    """Return a function that applies `body` `count` times.

    It is f(carry, start, *constants) -> (carry, infos), with the indices start
    .. start + count - 1. Every leaf of `infos` has a new leading axis of length
    `count`. The carry is donated.
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
      several = jax.sharding.get_abstract_mesh().size > 1
      for index in range(count):
        if several and index % MAX_STEPS_IN_FLIGHT == 0:
          jax.block_until_ready(carry)
        carry, info = step(carry, start + index, *constants)
        infos.append(info)
      return carry, _stack(infos)

    return unrolled

  def chain(self, parts: Sequence[tuple[Body, int]]) -> Body:
    """Return `repeat` of several (body, count) in turn, as one function.

    The indices run on from body to body, and the infos are concatenated: all
    bodies must return infos of one structure. Each body is compiled by itself.
    """
    repeats = [(self.repeat(body, count), count) for body, count in parts]
    join = self.jit_piece(_concatenate)

    def chained(carry, start, *constants):
      infos = []
      for repeat, count in repeats:
        carry, info = repeat(carry, start, *constants)
        start = start + count
        infos.append(info)
      return carry, infos[0] if len(infos) == 1 else join(infos)

    return chained


@jax.jit
def _stack(infos):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)


def _concatenate(infos):
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *infos)


def scan(
  body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
  carry: PyTree,
  parts: PyTree,
) -> tuple[PyTree, PyTree]:
  """Return `lax.scan` of body(carry, part) along the first axis, inside jit.

  Each part starts when the one before is done. On CPU, too, where XLA would
  otherwise compute all parts at once and hold memory for all of them.
  """
  if platform() != "cpu":
    return jax.lax.scan(body, carry, parts)
  outs = []
  for index in range(len(jax.tree.leaves(parts)[0])):
    part = jax.tree.map(lambda x: x[index], parts)  # noqa: B023 (used at once)
    carry, out = body(carry, _after((carry, outs[-1:]), part))
    outs.append(out)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def _after(done, part):
  """Return `part`, but only after the floats of `done` are computed.

  XLA:CPU drops `lax.optimization_barrier` before it decides on an order, so
  `part` is made to depend on `done`: on whether a number exceeds infinity.
  """
  beyond = [
    leaf.ravel()[0] > jnp.inf
    for leaf in jax.tree.leaves(done)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  if not beyond:
    return part
  never = jnp.stack(beyond).any()
  return select(never, jax.tree.map(jnp.zeros_like, part), part)


def cond(
  predicate: jax.Array, function: Callable[..., PyTree], idle: PyTree, *operands
) -> PyTree:
  """Return function(*operands) where `predicate`, bool[], holds, else `idle`.

  `idle` has the structure of the function's result. On accelerators `function`
  is not run where `predicate` does not hold; on CPU it always is.
  """
  if platform() != "cpu":
    return jax.lax.cond(predicate, function, lambda *_: idle, *operands)
  return select(predicate, function(*operands), idle)


def select(predicate: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
  """Return `yes` where `predicate`, bool[], holds, else `no`.

  Both are computed.
  """
  return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), yes, no)
