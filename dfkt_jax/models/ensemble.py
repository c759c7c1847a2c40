"""Several teachers as one network.

With l_i the logits of member i of N, p_i = softmax(l_i), n_ik images of class k
in the training set of member i and w_ik = n_ik / sum_j n_jk:

  logits         mean_i l_i                  (DENSE, NeurIPS 2022)
  probabilities  log mean_i p_i
  columns        log q, q_k ~ sum_i w_ik p_ik, normalized over k

"columns" trusts a member on the classes that it was trained on. Unlike the sum
of w_iy l_i in FedFTG and DFRD, where y is the label that an image was made for,
it needs no label: it works on real images, and q does not name y whatever the
image shows.

An ensemble is a `Network` like any other. A loss that sums over BatchNorms sums
over those of all members, so that its weight means N times as much as with one
teacher.
"""

from collections.abc import Sequence
from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax.errors import UsageError
from dfkt_jax.models.norm import sow_latest
from dfkt_jax.network import InputSpec, Network, Regression

Combine = Literal["logits", "probabilities", "columns"]


class Ensemble(nn.Module):
  """Several modules with one output; each member normalizes its own input.

  Images are f32[batch, height, width, channels] in [0, 1]. The tap "members" is
  f32[batch, members, ..., classes], the members' logits. The taps of a member
  are nested under its name, `members_0` and so on.

  `shares` are the weights w as [class][member], () without class counts.
  """

  members: tuple[nn.Module, ...]
  specs: tuple[InputSpec, ...]
  combine: Combine
  shares: tuple[tuple[float, ...], ...] = ()

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Return f32[batch, ..., classes], the combined logits."""
    logits = [
      member(spec.normalize(x), train=train)
      for member, spec in zip(self.members, self.specs)
    ]
    logits = jnp.stack(logits, 1)
    sow_latest(self, "features", "members", logits)
    if self.combine == "logits":
      return logits.mean(1)
    log_p = jax.nn.log_softmax(logits)
    if self.combine == "probabilities":
      return jax.nn.logsumexp(log_p, 1) - jnp.log(len(self.members))
    shares = jnp.asarray(self.shares, jnp.float32).T
    middle = (1,) * (log_p.ndim - 3)
    weights = shares.reshape(1, len(self.members), *middle, -1)
    return jax.nn.log_softmax(jax.nn.logsumexp(log_p, 1, b=weights))


def make_ensemble(
  networks: Sequence[Network],
  combine: Combine | None = None,
  class_counts: Sequence[Sequence[int]] | np.ndarray | None = None,
  names: Sequence[str] = (),
) -> Network:
  """Return the ensemble of networks as one network.

  Args:
    networks: the members; the ensemble has the first one's `crop`.
    combine: see above; None: "columns" with class counts, "logits" for a
      regression, else "probabilities".
    class_counts: [member][class], images of each class in the training sets.
    names: of the members in messages, such as their directories.

  Raises:
    UsageError: the members differ in their input's shape or in their task, or
      `combine` and `class_counts` do not fit them.
  """
  names = list(names) or [f"teacher {i}" for i in range(1, len(networks) + 1)]
  spec = _common_spec(networks, names)
  if combine is None:
    default = "probabilities"
    if isinstance(spec.task, Regression):
      default = "logits"
    combine = default if class_counts is None else "columns"
  if isinstance(spec.task, Regression) and combine != "logits":
    raise UsageError(
      f"combine is {combine!r}, which weighs probabilities, and the teachers of"
      " a regression have none: give combine='logits'"
    )
  if combine == "columns" and class_counts is None:
    raise UsageError(
      "combine is 'columns', which weighs the teachers by their images of each"
      " class, and there are no class_counts: give them, or"
      " combine='probabilities'"
    )
  shares = ()
  if class_counts is not None:
    shares = _shares(np.asarray(class_counts), spec, names)
  module = Ensemble(
    tuple(network.module for network in networks),
    tuple(network.spec for network in networks),
    combine,
    shares,
  )
  collections = sorted({name for n in networks for name in n.variables})
  variables = {
    collection: {
      f"members_{index}": network.variables[collection]
      for index, network in enumerate(networks)
      if collection in network.variables
    }
    for collection in collections
  }
  return Network(variables, module, spec)


def _common_spec(networks, names):
  """Return the members' input in [0, 1] with their task."""
  if not networks:
    raise UsageError("networks is empty: give one teacher or more")
  specs = [network.spec for network in networks]
  shapes = ["x".join(map(str, spec.shape)) for spec in specs]
  _check_equal("images of one size", shapes, names)
  kinds = [spec.task.kind for spec in specs]
  _check_equal("one task", kinds, names)
  counts = [f"{spec.classes} outputs" for spec in specs]
  _check_equal("the same number of classes", counts, names)
  named = [i for i, spec in enumerate(specs) if spec.class_names]
  _check_equal(
    "the same classes in one order",
    [", ".join(specs[i].class_names) for i in named],
    [names[i] for i in named],
  )
  task = specs[named[0] if named else 0].task
  if isinstance(task, Regression):
    moments = [f"mean {s.task.mean}, std {s.task.std}" for s in specs]
    _check_equal("outputs in the same units", moments, names)
  height, width, channels = specs[0].shape
  mean, std = (0.0,) * channels, (1.0,) * channels
  return InputSpec(height, width, channels, mean, std, task, specs[0].crop)


def _check_equal(what, found, names):
  if len(set(found)) > 1:
    listed = "; ".join(f"{n}: {value}" for n, value in zip(names, found))
    raise UsageError(
      f"the teachers of an ensemble need {what} and have {listed}: give"
      " networks that agree"
    )


def _shares(counts, spec, names):
  """Return w as [class][member]."""
  expected = (len(names), spec.classes)
  if counts.shape != expected or (counts < 0).any():
    raise UsageError(
      f"class_counts holds numbers of shape {counts.shape}, the least"
      f" {counts.min(initial=0)}: expected a count of 0 or more for each of the"
      f" {expected[0]} teachers and {expected[1]} classes"
    )
  totals = counts.sum(0)
  if not totals.all():
    label = int(np.flatnonzero(totals == 0)[0])
    name = spec.class_names[label] if spec.class_names else label
    raise UsageError(
      f"class_counts has no image of class {name!r} at any of"
      f" {', '.join(names)}: give the counts of their training sets"
    )
  return tuple(map(tuple, (counts / totals).T.tolist()))
