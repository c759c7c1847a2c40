"""Networks on disk: directories with `card.json` and `weights.safetensors`.

The card describes the weights and their origin. It holds their SHA-256, so that
a mismatch of the two files is found. The weights are the flattened variables in
float32, with names such as "params/conv1/kernel" and "batch_stats/bn1/mean".
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import importlib.metadata
import os
from pathlib import Path
import shutil
from typing import Any
import uuid

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dfkt_jax import files
from dfkt_jax import network as net
from dfkt_jax.errors import UsageError
from dfkt_jax.files import FilePath
from dfkt_jax.models import build
from dfkt_jax.network import InputSpec, Network, Regression, Task
from dfkt_jax.network.task import TASKS
from dfkt_jax.teachers import keymap
from dfkt_jax.teachers.convert import abstract_variables

FORMAT = 1
CARD = "card.json"
WEIGHTS = "weights.safetensors"
# Folders of a run's workdir that may hold its network.
IN_WORKDIR = ("network", "student")


@dataclasses.dataclass(frozen=True)
class Card:
  """The contents of `card.json`.

  Attributes:
    arch: one of `models.ARCHS`.
    naming: naming of the tensors in PyTorch, see `keymap`; used by
      `dfkt export`.
    preset: preset of the import, None for a network trained here.
    input: the network's input and task.
    source: name of the imported file, or a line on how it was trained.
    source_sha256: SHA-256 of the imported file.
    licence: licence of the imported file, as published.
    parameters: number of trainable scalars.
    weights_sha256: SHA-256 of `weights.safetensors`; with `arch` and `input` it
      determines the network's predictions.
    created_by: this library and its version.
    extras: entries of PyTorch's file that a Network lacks, see `convert`.
  """

  arch: str
  naming: str
  preset: str | None
  input: InputSpec
  source: str | None
  source_sha256: str | None
  licence: str | None
  parameters: int
  weights_sha256: str
  created_by: str
  extras: dict[str, Any]


def describe(
  network: Network,
  arch: str,
  *,
  naming: str | None = None,
  preset: str | None = None,
  source: str | None = None,
  source_sha256: str | None = None,
  licence: str | None = None,
  extras: Mapping[str, Any] | None = None,
) -> Card:
  """Return the card of a network; arguments that are left out are unknown.

  Raises:
    UsageError: `naming` is None and the architecture has no PyTorch names.
  """
  return Card(
    arch=arch,
    naming=naming or keymap.default_naming(network.module),
    preset=preset,
    input=network.spec,
    source=source,
    source_sha256=source_sha256,
    licence=licence,
    parameters=net.num_parameters(network),
    weights_sha256=_sha256(_weights(network)),
    created_by=_version(),
    extras=dict(extras or {}),
  )


def save(
  directory: FilePath, network: Network, card: Card, *, replace: bool = False
) -> None:
  """Write a network atomically: to a temporary directory, which is renamed.

  An existing directory is replaced if it holds the same network, or, with
  `replace`, if it holds any network. Nothing else is ever removed.

  Raises:
    UsageError: `directory` holds something else, or cannot be written.
    ValueError: the card describes other weights or another input.
  """
  target = Path(os.path.realpath(directory))
  weights = _weights(network)
  if (card.weights_sha256, card.input) != (_sha256(weights), network.spec):
    raise ValueError(f"the card of {card.arch} does not describe this network")
  temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    _check_replaceable(directory, card, replace)
    files.write_atomic(temporary / WEIGHTS, weights)
    record = {**dataclasses.asdict(card), "input": _spec_record(card.input)}
    files.write_json(temporary / CARD, {"format": FORMAT, **record})
    _swap(temporary, target)
  except OSError as error:
    raise files.unwritable(directory, error) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def load(directory: FilePath) -> tuple[Network, Card]:
  """Return the network and its card, after checking all files.

  `directory` may be the workdir of a finished run.

  Raises:
    UsageError: there is no network at `directory`, or its card or its weights
      differ from those that `save` wrote.
  """
  directory = _find_network(directory)
  card = read_card(directory)
  path = directory / WEIGHTS
  found = files.sha256(path)
  if found != card.weights_sha256:
    raise UsageError(
      f"{path} was changed or cut short (SHA-256 {found[:16]}...): expected"
      f" {card.weights_sha256[:16]}... as in the card; write the network again."
    )
  try:
    module = build(card.arch, card.input.classes)
  except UsageError as error:
    raise UsageError(f"{directory / CARD}: {error}") from error
  flat = _read_weights(path)
  _check_shapes(flat, module, card, path)
  variables = traverse_util.unflatten_dict(
    {name: jnp.asarray(array) for name, array in flat.items()}, sep="/"
  )
  return Network(variables, module, card.input), card


def read_card(directory: FilePath) -> Card:
  """Return the card without reading the weights.

  Raises:
    UsageError: there is no network at `directory`, or its card is corrupted.
  """
  path = _find_network(directory) / CARD
  try:
    exists, is_network = Path(directory).exists(), path.is_file()
  except OSError as error:
    raise files.unreadable(directory, error) from error
  if not exists:
    raise UsageError(
      f"{os.fspath(directory)} does not exist: expected a network directory;"
      " make one with 'dfkt teacher import' or 'dfkt teacher train'."
    )
  if not is_network:
    raise UsageError(
      f"{os.fspath(directory)} is not a network directory (no {CARD} in it):"
      " expected one that 'dfkt teacher import' or 'dfkt teacher train' wrote."
    )
  return _parse_card(files.read_json(path), path)


def _find_network(directory: FilePath) -> Path:
  """Return the directory itself, or the folder of a workdir's network."""
  path = Path(directory)
  if path.is_dir() and not (path / CARD).exists():
    for name in IN_WORKDIR:
      if (path / name / CARD).is_file():
        return path / name
  return path


def digest(directory: FilePath) -> str:
  """Return the SHA-256 of the weights, a teacher's name in `result.json`.

  Raises:
    UsageError: there is no network at `directory`, or its card is corrupted.
  """
  return read_card(directory).weights_sha256


def _weights(network) -> bytes:
  flat = traverse_util.flatten_dict(network.variables, sep="/")
  arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
  return safetensors.numpy.save(arrays)


def _check_replaceable(directory, card, replace):
  path = Path(directory)
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  try:
    existing = read_card(path)
  except UsageError as error:
    raise UsageError(
      f"{os.fspath(directory)} exists and is not a network directory: expected"
      " a new or empty directory; choose another place (nothing was changed)."
    ) from error
  if not replace and existing.weights_sha256 != card.weights_sha256:
    raise UsageError(
      f"{os.fspath(directory)} holds another network ({existing.arch} from"
      f" {existing.source or 'an unknown source'}): expected a new or empty"
      " directory; choose another place or remove it."
    )


def _swap(temporary, target):
  """Rename `temporary` to `target` and remove a directory that was there."""
  # A directory cannot be renamed over one that holds files. Between the two
  # renames `target` does not exist; it never holds half a network.
  if not target.exists():
    os.rename(temporary, target)
    return
  old = temporary.with_suffix(".old")
  os.rename(target, old)
  try:
    os.rename(temporary, target)
  except OSError:
    os.rename(old, target)
    raise
  shutil.rmtree(old, ignore_errors=True)


# The JSON types of the card's fields, apart from "input".
_TYPES: Mapping[str, tuple[type, ...]] = {
  "arch": (str,),
  "naming": (str,),
  "preset": (str, type(None)),
  "source": (str, type(None)),
  "source_sha256": (str, type(None)),
  "licence": (str, type(None)),
  "parameters": (int,),
  "weights_sha256": (str,),
  "created_by": (str,),
  "extras": (dict,),
}


def _parse_card(record, path) -> Card:
  if not isinstance(record, dict) or "format" not in record:
    raise UsageError(
      f"{path} is not the card of a network: expected a JSON object with a"
      f' "format"; write the network again.'
    )
  if record["format"] != FORMAT:
    raise UsageError(
      f"{path} has format {record['format']!r}, expected {FORMAT}: another"
      " version of dfkt_jax wrote it; use that version."
    )
  try:
    fields = {name: record[name] for name in _TYPES}
    for name, types in _TYPES.items():
      if not isinstance(fields[name], types):
        raise TypeError(f"{name} is {fields[name]!r}")
    return Card(input=_parse_spec(record["input"]), **fields)
  except (KeyError, TypeError, ValueError) as error:
    raise UsageError(
      f"{path} is corrupted ({type(error).__name__}: {error}): expected the"
      " card that dfkt wrote; write the network again."
    ) from error


def _spec_record(spec: InputSpec) -> dict[str, Any]:
  """Return the JSON form of a spec.

  Except for the keys of the task, the keys are those of version 0.1, which
  reads no others and treats every network as a classifier.
  """
  record = {
    "height": spec.height,
    "width": spec.width,
    "channels": spec.channels,
    "mean": spec.mean,
    "std": spec.std,
    "classes": spec.classes,
    "class_names": spec.class_names,
    "crop": spec.crop,
    "task": spec.task.kind,
  }
  if isinstance(spec.task, Regression):
    record |= {"output_mean": spec.task.mean, "output_std": spec.task.std}
  return record


def _parse_spec(record) -> InputSpec:
  for name in ("height", "width", "channels", "classes"):
    if type(record[name]) is not int or record[name] < 1:
      raise ValueError(f"{name} is {record[name]!r}")
  return InputSpec(
    **{name: record[name] for name in ("height", "width", "channels")},
    mean=_numbers(record["mean"]),
    std=_numbers(record["std"]),
    task=_parse_task(record),
    crop=float(record.get("crop", 1.0)),  # the first cards do not have it
  )


def _parse_task(record) -> Task:
  # Cards of version 0.1 do not have a task: all describe classifiers.
  kind = record.get("task", "classification")
  if kind not in TASKS:
    raise ValueError(f"task is {kind!r}")
  outputs = record["classes"]
  names = tuple(str(name) for name in record["class_names"])
  if TASKS[kind] is Regression:
    moments = (_numbers(record[f"output_{name}"]) for name in ("mean", "std"))
    return Regression(outputs, names, *moments)
  return TASKS[kind](outputs, names)


def _numbers(values) -> tuple[float, ...]:
  return tuple(float(value) for value in values)


def _read_weights(path) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load(path.read_bytes())
  except OSError as error:
    raise files.unreadable(path, error) from error
  except Exception as error:  # errors of safetensors and of numpy
    raise UsageError(
      f"{path} is not a safetensors file ({error}): expected the weights that"
      " dfkt wrote; write the network again."
    ) from error


def _check_shapes(flat, module, card, path):
  variables = abstract_variables(module, card.input)
  expected: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
  wrong = [
    name
    for name in sorted({*expected, *flat})
    if name not in flat
    or name not in expected
    or flat[name].shape != expected[name].shape
    or flat[name].dtype != expected[name].dtype
  ]
  if wrong:
    raise UsageError(
      f"{path} does not hold a {card.arch} for"
      f" {'x'.join(map(str, card.input.shape))} images and"
      f" {card.input.classes} classes ({len(wrong)} tensors differ, the first"
      f" is {wrong[0]}): expected the weights that dfkt wrote; write the"
      " network again."
    )


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _version() -> str:
  try:
    return f"dfkt_jax {importlib.metadata.version('dfkt-jax')}"
  except importlib.metadata.PackageNotFoundError:
    return "dfkt_jax, not installed"
