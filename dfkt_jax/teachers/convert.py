"""State dict -> Network -> state dict, with every key and shape accounted for.

The tensors of a float32 file are exported bit for bit, under the same keys. A
Network has no place for BatchNorm's `num_batches_tracked`, so it is kept apart,
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
from dfkt_jax.network import Classification, InputSpec, Network
from dfkt_jax.teachers import keymap, layouts, presets
from dfkt_jax.teachers.presets import Preset

StateDict = Mapping[str, np.ndarray]

COUNTERS = "num_batches_tracked"


class Problems(NamedTuple):
  """Differences between a state dict and a network, one line per tensor."""

  missing: list[str]
  extra: list[str]
  wrong_shape: list[str]


def to_network(
  state_dict: StateDict,
  arch: str,
  preset: Preset | InputSpec,
  source: str,
) -> Network:
  """Return the network that a state dict holds.

  The state dict must have every tensor of the architecture, in the right shape,
  and no other tensor.

  Args:
    state_dict: PyTorch names to arrays in PyTorch layouts. Floating types other
      than float32 (16, bfloat16, 64) are converted to float32.
    arch: one of `models.ARCHS`.
    preset: has the naming of the tensors and the input of the network; the
      number of classes is read from the file's last layer. With an InputSpec,
      the naming is the architecture's default, in which it is exported.
    source: name of the state dict in messages, such as the file's path.

  Raises:
    UsageError: the tensors are not those of the architecture, or hold a value
      that is not finite. The message lists every tensor that is missing, extra
      or of the wrong shape, and names the architecture that fits if one does.
  """
  module, spec, naming = _resolve(state_dict, arch, preset, source)
  layers = keymap.list_layers(module, naming, spec)
  expected = _linen_shapes(module, spec)
  problems = _find_problems(state_dict, layers, expected)
  if any(problems):
    raise UsageError(
      _mismatch_message(problems, state_dict, arch, preset, spec, source)
    )
  flat = {
    t.linen: jnp.asarray(
      t.to_linen(_to_finite_f32(state_dict[t.torch], t.torch, source))
    )
    for layer in layers
    for t in layouts.list_tensors(layer)
  }
  return Network(traverse_util.unflatten_dict(flat), module, spec)


def extras_of(state_dict: StateDict) -> dict[str, Any]:
  """Return the part of a state dict that `to_network` leaves out, for JSON.

  It is {"num_batches_tracked": {key: number}} with the counters that the source
  has. Files of PyTorch before 0.4.1 have no counters and are exported without
  them.
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
  """Return the exact inverse of `to_network`, in PyTorch's order of tensors.

  Args:
    network: one of our architectures.
    naming: naming of the tensors; None selects the architecture's default.
    extras: result of `extras_of` for the source. A network that was trained
      here has no extras; its BatchNorms count 0 batches.

  Returns:
    float32 arrays, and int64 scalars for `num_batches_tracked`.

  Raises:
    UsageError: the naming has no names for the network's architecture.
  """
  naming = naming or keymap.default_naming(network.module)
  counters = (extras or {}).get(COUNTERS)
  flat = traverse_util.flatten_dict(network.variables)
  result = {}
  for layer in keymap.list_layers(network.module, naming, network.spec):
    for tensor in layouts.list_tensors(layer):
      array = tensor.to_torch(np.asarray(flat[tensor.linen]))
      result[tensor.torch] = np.ascontiguousarray(array)
    key = layouts.counter_key(layer)
    if layer.kind == "batch_norm" and (counters is None or key in counters):
      result[key] = np.asarray((counters or {}).get(key, 0), np.int64)
  return result


def abstract_variables(module, spec: InputSpec) -> dict[str, Any]:
  """Return the variables of a network as `jax.ShapeDtypeStruct`s."""
  init = lambda key: net.init(key, module, spec).variables
  return jax.eval_shape(init, jax.random.key(0))


def _resolve(state_dict, arch, preset, source):
  """Return the module, InputSpec and naming expected of the state dict."""
  if isinstance(preset, InputSpec):
    module = build(arch, preset.classes)
    return module, preset, keymap.default_naming(module)
  first = preset.specs[0]
  module = build(arch, first.classes)
  key, classes = _read_head(state_dict, module, preset.naming, first)
  spec = first if classes is None else preset.spec(classes)
  if spec is None:
    known = " or ".join(str(spec.classes) for spec in preset.specs)
    raise UsageError(
      f"{source}: {key} has {classes} classes, but preset {preset.name!r}"
      f" expects {known}: use the preset that the file was made for, or call"
      " dfkt_jax.teachers.import_file with an InputSpec from Python."
    )
  return build(arch, spec.classes), spec, preset.naming


def _read_head(state_dict, module, naming, spec):
  """Return the key of the last layer's weight, and its number of classes."""
  head = keymap.list_layers(module, naming, spec)[-1]
  key = f"{head.torch}.weight"
  weight = state_dict.get(key)
  return key, weight.shape[0] if np.ndim(weight) == 2 else None


def _linen_shapes(module, spec):
  variables = abstract_variables(module, spec)
  flat: dict[Any, Any] = traverse_util.flatten_dict(variables)
  return {path: leaf.shape for path, leaf in flat.items()}


def _find_problems(state_dict, layers, linen_shapes) -> Problems:
  found = {k: _Shape.of(v) for k, v in state_dict.items()}
  expected = {}
  for tensor in (t for layer in layers for t in layouts.list_tensors(layer)):
    # Converting a broadcast scalar finds PyTorch's shape without allocating it.
    scalar = np.broadcast_to(np.float32(0), linen_shapes[tensor.linen])
    expected[tensor.torch] = _Shape("float", tensor.to_torch(scalar).shape)
  counters = {
    layouts.counter_key(layer): _Shape("int", ())
    for layer in layers
    if layer.kind == "batch_norm"
  }
  known = {**expected, **counters}
  return Problems(
    missing=[f"{k} {s}" for k, s in expected.items() if k not in found],
    extra=[f"{k} {s}" for k, s in found.items() if k not in known],
    wrong_shape=[
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
    # bfloat16 is a floating type to jax but not to numpy.
    if jnp.issubdtype(array.dtype, jnp.floating):
      return cls("float", array.shape)
    if jnp.issubdtype(array.dtype, jnp.integer):
      return cls("int", array.shape)
    return cls(str(array.dtype), array.shape)

  def __str__(self):
    return f"{self.kind}[{','.join(map(str, self.shape))}]"


def _mismatch_message(problems, state_dict, arch, preset, spec, source):
  counts = (
    f"{len(problems.missing)} tensors missing, {len(problems.extra)} extra,"
    f" {len(problems.wrong_shape)} of the wrong shape"
  )
  advice = _advice(_find_arch(state_dict, spec), arch, preset)
  lines = [f"{source} is not a {arch} ({counts}): {advice}."]
  titles = ("missing", "extra", "of the wrong shape")
  for title, tensors in zip(titles, problems):
    if tensors:
      lines += [f"{title}:", *(f"  {tensor}" for tensor in tensors)]
  return "\n".join(lines)


def _advice(match, arch, preset):
  """Return the advice of a message; `match` is the result of `_find_arch`."""
  if match is None:
    return "it fits no architecture of dfkt; check the file and --arch"
  found, namings = match
  if isinstance(preset, InputSpec):
    used, name = keymap.default_naming(build(arch, preset.classes)), None
  else:
    used, name = preset.naming, preset.name
  usable = [
    other
    for other in presets.names_for(found)
    if presets.PRESETS[other].naming in namings
  ]
  if found != arch:
    if name is None or name in usable or not usable:
      return f"it fits --arch {found}"
    return f"it fits --arch {found} --preset {usable[0]}"
  if used in namings:
    return f"it is a {arch} for other images or classes; use another preset"
  if not usable:
    return f"it is a {arch} with the tensor names of {namings[0]}"
  return (
    f"it is a {arch} with the tensor names of {namings[0]}; use --preset"
    f" {' or '.join(usable)}"
  )


def _find_arch(state_dict, spec) -> tuple[str, list[str]] | None:
  """Find the architecture with the names and shapes of a state dict.

  Returns:
    The architecture and the namings in which it has these names; None if no
    architecture fits.
  """
  for arch in ARCHS:
    namings = _matching_namings(state_dict, arch, spec)
    if namings and _shapes_match(state_dict, arch, namings[0], spec):
      return arch, namings
  return None


def _matching_namings(state_dict, arch, spec) -> list[str]:
  """Return the namings in which the architecture has the state dict's keys."""
  module = build(arch, spec.classes)
  found = {key for key in state_dict if not key.endswith(f".{COUNTERS}")}
  return [
    naming
    for naming in keymap.list_namings(module)
    if found
    == {
      tensor.torch
      for layer in keymap.list_layers(module, naming, spec)
      for tensor in layouts.list_tensors(layer)
    }
  ]


def _shapes_match(state_dict, arch, naming, spec) -> bool:
  """Return whether the state dict's shapes are the architecture's.

  Image sizes of the architecture's presets and of `spec` are tried.
  """
  layers = keymap.list_layers(build(arch, spec.classes), naming, spec)
  first = next(layer for layer in layers if layer.kind == "conv")
  stem = state_dict[f"{first.torch}.weight"].shape
  head = state_dict[f"{layers[-1].torch}.weight"].shape
  if len(stem) != 4 or len(head) != 2:
    return False
  known = [presets.PRESETS[name].specs[0] for name in presets.names_for(arch)]
  sizes = {(s.height, s.width) for s in (*known, spec)}
  return any(
    _fits(state_dict, arch, naming, _unnormalized(size, stem[1], head[0]))
    for size in sizes
  )


def _fits(state_dict, arch, naming, spec) -> bool:
  module = build(arch, spec.classes)
  layers = keymap.list_layers(module, naming, spec)
  shapes = _linen_shapes(module, spec)
  return not any(_find_problems(state_dict, layers, shapes))


def _unnormalized(size, channels, classes):
  """Return an InputSpec of mean 0 and standard deviation 1."""
  mean, std = (0.0,) * channels, (1.0,) * channels
  return InputSpec(
    size[0], size[1], channels, mean, std, Classification(classes)
  )


def _to_finite_f32(array, key, source) -> np.ndarray:
  with np.errstate(over="ignore"):
    result = array.astype(np.float32)
  bad = int(np.size(result) - np.isfinite(result).sum())
  if bad:
    raise UsageError(
      f"{source}: {key} has {bad} values that are not finite float32 numbers:"
      " expected the weights of a working network; download or copy the file"
      " again."
    )
  return result
