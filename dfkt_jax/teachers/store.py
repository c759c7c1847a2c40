"""A network on disk: a directory with `card.json` and `weights.safetensors`.

The card says what the weights are and where they came from; it holds their
SHA-256, so the two cannot drift apart. The weights are the flattened variables,
named as in "params/conv1/kernel" and "batch_stats/bn1/mean", all float32.
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
from dfkt_jax.network import InputSpec, Network
from dfkt_jax.teachers import keymap
from dfkt_jax.teachers.convert import abstract_variables

FORMAT = 1
CARD = "card.json"
WEIGHTS = "weights.safetensors"
# Where the workdir of a run keeps the network it made.
IN_WORKDIR = ("network", "student")


@dataclasses.dataclass(frozen=True)
class Card:
  """What `card.json` records.

  Attributes:
    arch: one of `models.ARCHS`.
    naming: of the tensors in PyTorch, see `keymap`; `dfkt export` uses it.
    preset: that the file was imported with, None for a network trained here.
    input: what the network takes and its classes.
    source: name of the imported file, or a line on how it was trained.
    source_sha256: of the imported file.
    licence: of the imported file, as published.
    parameters: trainable scalars.
    weights_sha256: of `weights.safetensors`; with `arch` and `input` it says
      what the network answers.
    created_by: this library and its version.
    extras: what PyTorch's file holds and a Network does not, see `convert`.
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
  """The card of a network; what is left out is not known.

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
  """Writes a network beside `directory` and renames: all of it or nothing.

  What is there already is replaced if it is the same network, or any network
  with `replace`; nothing else is ever removed.

  Raises:
    UsageError: there is something else at `directory`, or it cannot be written.
    ValueError: the card describes other weights or another input.
  """
  target = Path(os.path.realpath(directory))
  weights = _weights(network)
  if (card.weights_sha256, card.input) != (_sha256(weights), network.spec):
    raise ValueError(f"the card of {card.arch} does not describe this network")
  beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
  try:
    _check_replaceable(directory, card, replace)
    files.write_atomic(beside / WEIGHTS, weights)
    files.write_json(
      beside / CARD, {"format": FORMAT, **dataclasses.asdict(card)}
    )
    _swap(beside, target)
  except OSError as error:
    raise files.unwritable(directory, error) from error
  finally:
    shutil.rmtree(beside, ignore_errors=True)


def load(directory: FilePath) -> tuple[Network, Card]:
  """The network and its card, everything checked.

  The workdir of a finished run stands for the network in it.

  Raises:
    UsageError: there is no network at `directory`, or its card or its weights
      are not what `save` wrote.
  """
  directory = _network_of(directory)
  card = read_card(directory)
  path = directory / WEIGHTS
  found = files.sha256(path)
  if found != card.weights_sha256:
    raise UsageError(
      f"{path} was changed or cut short (SHA-256 {found[:16]}..., the card says"
      f" {card.weights_sha256[:16]}...): write the network again."
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
  """The card alone; the weights are not looked at.

  Raises:
    UsageError: there is no network at `directory`, or its card is corrupted.
  """
  path = _network_of(directory) / CARD
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


def _network_of(directory: FilePath) -> Path:
  """The directory itself, or where a workdir keeps the network it made."""
  path = Path(directory)
  if path.is_dir() and not (path / CARD).exists():
    for name in IN_WORKDIR:
      if (path / name / CARD).is_file():
        return path / name
  return path


def digest(directory: FilePath) -> str:
  """SHA-256 of the weights, which identifies a teacher in `result.json`.

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
    there = read_card(path)
  except UsageError as error:
    raise UsageError(
      f"{os.fspath(directory)} exists and is not a network directory: choose"
      " another place, nothing there was changed."
    ) from error
  if not replace and there.weights_sha256 != card.weights_sha256:
    raise UsageError(
      f"{os.fspath(directory)} holds another network ({there.arch} from"
      f" {there.source or 'an unknown source'}): choose another place or remove"
      " it."
    )


def _swap(beside, target):
  # A directory cannot be renamed over one that holds files. Between the two
  # renames there is no network at `target`, which is not half of one.
  if not target.exists():
    os.rename(beside, target)
    return
  old = beside.with_suffix(".old")
  os.rename(target, old)
  try:
    os.rename(beside, target)
  except OSError:
    os.rename(old, target)
    raise
  shutil.rmtree(old, ignore_errors=True)


# The types that JSON gives the fields of a card, apart from "input".
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
      f"{path} has format {record['format']!r}, expected {FORMAT}: it was"
      " written by another version of dfkt_jax; use that one."
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


def _parse_spec(record) -> InputSpec:
  sizes = ("height", "width", "channels", "classes")
  for name in sizes:
    if type(record[name]) is not int or record[name] < 1:
      raise ValueError(f"{name} is {record[name]!r}")
  return InputSpec(
    **{name: record[name] for name in sizes},
    mean=tuple(float(value) for value in record["mean"]),
    std=tuple(float(value) for value in record["std"]),
    class_names=tuple(str(name) for name in record["class_names"]),
    crop=float(record.get("crop", 1.0)),  # cards of before have none
  )


def _read_weights(path) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load(path.read_bytes())
  except OSError as error:
    raise files.unreadable(path, error) from error
  except Exception as error:  # safetensors raises its own and numpy's
    raise UsageError(
      f"{path} is not a safetensors file ({error}): write the network again."
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
      f" is {wrong[0]}): write the network again."
    )


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _version() -> str:
  try:
    return f"dfkt_jax {importlib.metadata.version('dfkt-jax')}"
  except importlib.metadata.PackageNotFoundError:
    return "dfkt_jax, not installed"
