"""State dict -> Network -> state dict, with every key and shape accounted for.

Tensors of a float32 file come back bit for bit, under the same keys. The one
thing that has no place in a Network, BatchNorm's `num_batches_tracked`, travels
as `extras` (see `extras_of`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.models import ARCHS, build
from dfkt_jax.network import InputSpec, Network
from dfkt_jax.teachers import keymap, layouts, presets
from dfkt_jax.teachers.presets import Preset

StateDict = Mapping[str, np.ndarray]

COUNTERS = "num_batches_tracked"


class Problems(NamedTuple):
  """What keeps a state dict from being a network, one line a tensor."""

  missing: list[str]
  extra: list[str]
  mis_shaped: list[str]


def to_network(
  state_dict: StateDict,
  arch: str,
  preset: Preset | InputSpec,
  source: str,
) -> Network:
  """The network that a state dict holds.

  Every tensor has to be there, nothing else may be, and all shapes have to be
  those of the architecture.

  Args:
    state_dict: PyTorch names to arrays in PyTorch layouts. Floating types other
      than float32 (16, bfloat16, 64) are converted to float32.
    arch: one of `models.ARCHS`.
    preset: names the tensors and knows the input; the file's last layer tells
      the number of classes. An InputSpec stands for itself and for the naming
      that the architecture is exported with.
    source: what messages call the state dict, say the file's path.

  Raises:
    UsageError: the tensors are not those of the architecture (the message lists
      all that is missing, extra or mis-shaped, and names the architecture that
      fits if there is one), or hold a value that is not finite.
  """
  module, spec, naming = _target(state_dict, arch, preset, source)
  layers = keymap.layers(module, naming, spec)
  expected = _linen_shapes(module, spec)
  problems = _problems(state_dict, layers, expected)
  if any(problems):
    raise UsageError(_refusal(problems, state_dict, arch, preset, spec, source))
  flat = {
    t.linen: jnp.asarray(
      t.to_linen(_finite(state_dict[t.torch], t.torch, source))
    )
    for layer in layers
    for t in layouts.tensors(layer)
  }
  return Network(traverse_util.unflatten_dict(flat), module, spec)


def extras_of(state_dict: StateDict) -> dict[str, Any]:
  """What `to_network` leaves out, ready for JSON.

  {"num_batches_tracked": {key: number}} with the counters that the source has;
  files of PyTorch before 0.4.1 have none, and are exported without.
  """
  return {
    COUNTERS: {
      key: int(value)
      for key, value in state_dict.items()
      if key.endswith(f".{COUNTERS}")
    }
  }


def to_state_dict(
  network: Network,
  naming: str | None = None,
  extras: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """The exact inverse of `to_network`, in the order of PyTorch's own.

  Args:
    network: one of our architectures.
    naming: of the tensors; None is the one of the architecture.
    extras: what `extras_of` found in the source. A network that was trained
      here has none: its BatchNorms then count 0 batches.

  Returns:
    float32 arrays, and int64 scalars for `num_batches_tracked`.

  Raises:
    UsageError: the naming has no names for the network's architecture.
  """
  naming = naming or keymap.default_naming(network.module)
  counters = (extras or {}).get(COUNTERS)
  flat = traverse_util.flatten_dict(network.variables)
  result = {}
  for layer in keymap.layers(network.module, naming, network.spec):
    for tensor in layouts.tensors(layer):
      array = tensor.to_torch(np.asarray(flat[tensor.linen]))
      result[tensor.torch] = np.ascontiguousarray(array)
    key = layouts.counter(layer)
    if layer.kind == "batch_norm" and (counters is None or key in counters):
      result[key] = np.asarray((counters or {}).get(key, 0), np.int64)
  return result


def abstract_variables(module, spec: InputSpec) -> dict[str, Any]:
  """The variables of a network as `jax.ShapeDtypeStruct`s."""
  initial = lambda key: net.init(key, module, spec).variables
  return jax.eval_shape(initial, jax.random.key(0))


def _target(state_dict, arch, preset, source):
  """Module, InputSpec and naming that the state dict is held against."""
  if isinstance(preset, InputSpec):
    module = build(arch, preset.classes)
    return module, preset, keymap.default_naming(module)
  first = preset.specs[0]
  module = build(arch, first.classes)
  key, classes = _head(state_dict, module, preset.naming, first)
  spec = first if classes is None else preset.spec(classes)
  if spec is None:
    known = " or ".join(str(spec.classes) for spec in preset.specs)
    raise UsageError(
      f"{source}: {key} has {classes} classes, preset {preset.name!r} is for"
      f" {known}: use the preset that the file was made for, or"
      " dfkt_jax.teachers.import_file with an InputSpec from Python."
    )
  return build(arch, spec.classes), spec, preset.naming


def _head(state_dict, module, naming, spec):
  """Key of the last layer's weight, and how many classes it tells apart."""
  head = keymap.layers(module, naming, spec)[-1]
  key = f"{head.torch}.weight"
  weight = state_dict.get(key)
  return key, weight.shape[0] if np.ndim(weight) == 2 else None


def _linen_shapes(module, spec):
  variables = abstract_variables(module, spec)
  flat: dict[Any, Any] = traverse_util.flatten_dict(variables)
  return {path: leaf.shape for path, leaf in flat.items()}


def _problems(state_dict, layers, linen_shapes) -> Problems:
  found = {k: _Shape.of(v) for k, v in state_dict.items()}
  expected = {}
  for tensor in (t for layer in layers for t in layouts.tensors(layer)):
    # Reading the layout function on a tensor without storage says its shape.
    blank = np.broadcast_to(np.float32(0), linen_shapes[tensor.linen])
    expected[tensor.torch] = _Shape("float", tensor.to_torch(blank).shape)
  counters = {
    layouts.counter(layer): _Shape("int", ())
    for layer in layers
    if layer.kind == "batch_norm"
  }
  known = {**expected, **counters}
  return Problems(
    missing=[f"{k} {s}" for k, s in expected.items() if k not in found],
    extra=[f"{k} {s}" for k, s in found.items() if k not in known],
    mis_shaped=[
      f"{key}: found {found[key]}, expected {shape}"
      for key, shape in known.items()
      if key in found and found[key] != shape
    ],
  )


class _Shape(NamedTuple):
  kind: str
  shape: tuple[int, ...]

  @classmethod
  def of(cls, array):
    # numpy does not count bfloat16 among the floating types, jax does.
    if jnp.issubdtype(array.dtype, jnp.floating):
      return cls("float", array.shape)
    if jnp.issubdtype(array.dtype, jnp.integer):
      return cls("int", array.shape)
    return cls(str(array.dtype), array.shape)

  def __str__(self):
    return f"{self.kind}[{','.join(map(str, self.shape))}]"


def _refusal(problems, state_dict, arch, preset, spec, source):
  counts = (
    f"{len(problems.missing)} tensors missing, {len(problems.extra)} extra,"
    f" {len(problems.mis_shaped)} mis-shaped"
  )
  advice = _advice(_fitting(state_dict, spec), arch, preset)
  lines = [f"{source} is not a {arch} ({counts}): {advice}."]
  for title, tensors in zip(("missing", "extra", "mis-shaped"), problems):
    if tensors:
      lines += [f"{title}:", *(f"  {tensor}" for tensor in tensors)]
  return "\n".join(lines)


def _advice(fitting, arch, preset):
  if fitting is None:
    return "it fits no architecture that dfkt knows; check the file and --arch"
  found, namings = fitting
  if isinstance(preset, InputSpec):
    used, name = keymap.default_naming(build(arch, preset.classes)), None
  else:
    used, name = preset.naming, preset.name
  usable = [
    other
    for other in presets.serving(found)
    if presets.PRESETS[other].naming in namings
  ]
  if found != arch:
    if name is None or name in usable or not usable:
      return f"it fits --arch {found}"
    return f"it fits --arch {found} --preset {usable[0]}"
  if used in namings:
    return f"it is a {arch} of other images or classes; use another preset"
  if not usable:
    return f"it is a {arch} in the names of {namings[0]}"
  return (
    f"it is a {arch} in the names of {namings[0]}; use --preset"
    f" {' or '.join(usable)}"
  )


def _fitting(state_dict, spec) -> tuple[str, list[str]] | None:
  """The architecture, if any, whose names and shapes are the state dict's.

  And the namings in which they are.
  """
  for arch in ARCHS:
    namings = _named(state_dict, arch, spec)
    if namings and _shaped(state_dict, arch, namings[0], spec):
      return arch, namings
  return None


def _named(state_dict, arch, spec) -> list[str]:
  """The namings in which the architecture has the state dict's keys."""
  module = build(arch, spec.classes)
  found = {key for key in state_dict if not key.endswith(f".{COUNTERS}")}
  return [
    naming
    for naming in keymap.namings(module)
    if found
    == {
      tensor.torch
      for layer in keymap.layers(module, naming, spec)
      for tensor in layouts.tensors(layer)
    }
  ]


def _shaped(state_dict, arch, naming, spec) -> bool:
  """Whether the architecture has the state dict's shapes for some input."""
  layers = keymap.layers(build(arch, spec.classes), naming, spec)
  first = next(layer for layer in layers if layer.kind == "conv")
  stem = state_dict[f"{first.torch}.weight"].shape
  head = state_dict[f"{layers[-1].torch}.weight"].shape
  if len(stem) != 4 or len(head) != 2:
    return False
  known = [presets.PRESETS[name].specs[0] for name in presets.serving(arch)]
  sizes = {(s.height, s.width) for s in (*known, spec)}
  return any(
    _fits(state_dict, arch, naming, _bare_spec(size, stem[1], head[0]))
    for size in sizes
  )


def _fits(state_dict, arch, naming, spec) -> bool:
  module = build(arch, spec.classes)
  layers = keymap.layers(module, naming, spec)
  return not any(_problems(state_dict, layers, _linen_shapes(module, spec)))


def _bare_spec(size, channels, classes):
  mean, std = (0.0,) * channels, (1.0,) * channels
  return InputSpec(size[0], size[1], channels, mean, std, classes)


def _finite(array, key, source) -> np.ndarray:
  with np.errstate(over="ignore"):
    result = array.astype(np.float32)
  bad = int(np.size(result) - np.isfinite(result).sum())
  if bad:
    raise UsageError(
      f"{source}: {key} has {bad} values that are not finite float32 numbers:"
      " expected weights of a network that works; get the file again."
    )
  return result
