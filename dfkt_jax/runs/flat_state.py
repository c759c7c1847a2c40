"""States as flat dictionaries from the path of each leaf to the leaf.

Both kinds of checkpoints store these, so that a checkpoint can be inspected and
static parts of a state (modules) are never written.
"""

from collections.abc import Mapping
from typing import Any

import jax


def flatten(state: Any) -> dict[str, Any]:
  """Return the leaves of a state by the path of each."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any], like: Any) -> Any:
  """Return a state of the structure of `like` with these leaves.

  Raises:
    KeyError: a leaf of `like` is missing.
  """
  found = [leaves[name] for name in flatten(like)]
  return jax.tree.unflatten(jax.tree.structure(like), found)
