"""The one place that decides how loops and choices are compiled.

On accelerators a round is one program and its inner loops are `lax.scan`. On
CPU they are not: XLA:CPU runs convolutions inside a `while` several times
slower than outside (`dfkt bench loops` measures it, docs/performance.md has the
figures), so there each step is a program of its own and Python loops.

With choices it is the same: convolutions in a branch of `lax.cond` took 100
times as long on CPU (13.5 s instead of 0.13 s for the gradient of three layers,
one core, jax 0.10). There both sides are computed and one of them is taken.

A loop inside a step (`over`) cannot be a program a part, for the step is one:
on CPU it is unrolled.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax import parallel

PyTree = Any
# Steps that a CPU of several devices is told of before they are done. XLA:CPU
# takes up to 32 programs a device. The launch of one more waits on a thread
# that the other devices need to come to their all-reduce: all stand still.
AHEAD = 8
# body(carry, index, *constants) -> (carry, info)
Body = Callable[..., tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True)
class Loops:
  """How to compile: `rolled` is one program with scans, else one a step."""

  rolled: bool

  @classmethod
  def for_backend(cls) -> "Loops":
    """For the current mesh's devices, or JAX's default."""
    return cls(rolled=parallel.platform() != "cpu")

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
      several = jax.sharding.get_abstract_mesh().size > 1
      for index in range(count):
        if several and index % AHEAD == 0:
          jax.block_until_ready(carry)
        carry, info = step(carry, start + index, *constants)
        infos.append(info)
      return carry, _stack(infos)

    return unrolled

  def chain(self, parts: Sequence[tuple[Body, int]]) -> Body:
    """`repeat` of several (body, count), one after the other, as one function.

    Indices go on from body to body and so do the infos, which all of them give
    alike. Bodies may differ in all else, so that each is compiled by itself.
    """
    repeats = [(self.repeat(body, count), count) for body, count in parts]
    join = self.stage(_concatenate)

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


def over(
  body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
  carry: PyTree,
  parts: PyTree,
) -> tuple[PyTree, PyTree]:
  """`lax.scan` of body(carry, part), inside jit, along the parts' first axis.

  Each part begins once the one before is done, on CPU too, where XLA would
  otherwise work on all of them at once and hold memory for that.
  """
  if parallel.platform() != "cpu":
    return jax.lax.scan(body, carry, parts)
  outs = []
  for index in range(len(jax.tree.leaves(parts)[0])):
    part = jax.tree.map(lambda x: x[index], parts)  # noqa: B023 (used at once)
    carry, out = body(carry, _after((carry, outs[-1:]), part))
    outs.append(out)
  return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def _after(done, part):
  """`part`, which is there only after the floats of `done` are.

  XLA:CPU drops `lax.optimization_barrier` before it decides on an order, so
  there has to be something to wait for: whether a number is beyond infinity.
  """
  beyond = [
    leaf.ravel()[0] > jnp.inf
    for leaf in jax.tree.leaves(done)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  if not beyond:
    return part
  never = jnp.stack(beyond).any()
  return choose(never, jax.tree.map(jnp.zeros_like, part), part)


def when(
  predicate: jax.Array, function: Callable[..., PyTree], idle: PyTree, *operands
) -> PyTree:
  """function(*operands) where `predicate`, bool[], holds, else `idle`.

  `idle` has the structure of the answer. On accelerators `function` costs
  nothing where it does not hold.
  """
  if parallel.platform() != "cpu":
    return jax.lax.cond(predicate, function, lambda *_: idle, *operands)
  return choose(predicate, function(*operands), idle)


def choose(predicate: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
  """`yes` where `predicate`, bool[], holds, else `no`; both are computed."""
  return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), yes, no)
