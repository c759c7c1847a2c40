"""Checks of what the functions of a method return, made while jax traces them.

A method of a user's own is where these fail; without them the fault would show
later, in code that is not the user's, or never.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dfkt_jax.contracts import Batch, Info, State
from dfkt_jax.errors import UsageError


def check_step(method: Any, state: State, returned: Any) -> tuple[State, Info]:
  """Return what `method.step` returned for `state`: (state, info).

  Raises:
    UsageError: it is no such pair, the new state has other arrays than
      `state`, or `info` has a field that is no scalar.
  """
  about = f"{type(method).__name__}: step"
  if type(returned) is not tuple or len(returned) != 2:
    raise UsageError(
      f"{about} returned {_describe(returned)}: return (state, info)"
    )
  new, info = returned
  check_state(method, "step", state, new)
  for path, leaf in jax.tree_util.tree_leaves_with_path(info):
    if jnp.shape(leaf):
      raise UsageError(
        f"{about} returned an info whose {_name(path)} has the shape"
        f" {jnp.shape(leaf)}: an info holds scalars, so reduce it"
      )
  return new, info


def check_state(method: Any, function: str, old: State, new: State) -> State:
  """Return `new`, a state that `function` made from `old`.

  Raises:
    UsageError: the two differ in structure, or in an array's shape or dtype.
  """
  about = f"{type(method).__name__}: {function} returned"
  if jax.tree.structure(old) != jax.tree.structure(new):
    raise UsageError(
      f"{about} {_describe(new)} as the state, built otherwise than that of"
      f" init, {_describe(old)}: change its arrays only"
    )
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new)
  ):
    if (jnp.shape(a), jnp.result_type(a)) != (jnp.shape(b), jnp.result_type(b)):
      raise UsageError(
        f"{about} a state whose {_name(path)} is"
        f" {jnp.result_type(b)}{list(jnp.shape(b))} and was"
        f" {jnp.result_type(a)}{list(jnp.shape(a))}: keep shape and dtype"
      )
  return new


def check_sample(method: Any, returned: Any) -> Batch:
  """Return what `method.sample` returned.

  Raises:
    UsageError: it is no Batch of float images of rank 4.
  """
  about = f"{type(method).__name__}: sample returned"
  if not isinstance(returned, Batch):
    raise UsageError(
      f"{about} {_describe(returned)}: return a Batch, such as"
      " unlabelled(images)"
    )
  images = returned.images
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise UsageError(
      f"{about} images of {images.dtype}{list(images.shape)}: return"
      " f32[count, height, width, channels] in [0, 1]"
    )
  return returned


def _describe(value: Any) -> str:
  if isinstance(value, jax.Array):
    return f"an array {value.dtype}{list(value.shape)}"
  if type(value) is tuple:
    return f"a tuple of {len(value)}"
  return "None" if value is None else f"a {type(value).__name__}"


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path).lstrip(".") or "array"
