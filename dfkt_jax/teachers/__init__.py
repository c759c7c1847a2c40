"""PyTorch checkpoint file -> Network -> PyTorch checkpoint file."""

import os
from pathlib import Path
from typing import Literal

from dfkt_jax import files
from dfkt_jax.files import FilePath
from dfkt_jax.models import build
from dfkt_jax.network import InputSpec, Network
from dfkt_jax.teachers import presets
from dfkt_jax.teachers.convert import extras_of, to_network, to_state_dict
from dfkt_jax.teachers.presets import PRESETS, Preset
from dfkt_jax.teachers.store import (
  Card,
  describe,
  digest,
  load,
  read_card,
  save,
)
from dfkt_jax.teachers.torch_file import (
  read_state_dict,
  write_pth,
  write_safetensors,
)

__all__ = [
  "PRESETS",
  "Card",
  "Preset",
  "describe",
  "digest",
  "export",
  "extras_of",
  "import_file",
  "load",
  "read_card",
  "read_state_dict",
  "save",
  "to_network",
  "to_state_dict",
  "write_pth",
  "write_safetensors",
]


def import_file(
  path: FilePath,
  arch: str,
  preset: str | InputSpec | None = None,
  entry: str | None = None,
) -> tuple[Network, Card]:
  """Return the network in a PyTorch checkpoint file, and its card.

  Args:
    path: `.safetensors`, or a PyTorch file of either format.
    arch: one of `models.ARCHS`.
    preset: one of `PRESETS`; None selects the one with the name of `arch`. Give
      an InputSpec for a file that no preset covers; its tensors must then have
      the architecture's default naming, in which it is exported.
    entry: name of the state dict to read if the file holds several.

  Raises:
    UsageError: the architecture is unknown, the preset does not cover it, the
      file cannot be read, or does not hold the architecture.
  """
  # A misspelled architecture has no preset either, but the message should be
  # about the architecture.
  build(arch, classes=1)
  if isinstance(preset, InputSpec):
    target, origin = preset, {}
  else:
    target = presets.find(preset, arch)
    origin = {
      "naming": target.naming,
      "preset": target.name,
      "licence": target.licence,
    }
  state_dict = read_state_dict(path, entry)
  network = to_network(state_dict, arch, target, os.fspath(path))
  card = describe(
    network,
    arch,
    source=Path(path).name,
    source_sha256=files.sha256(path),
    extras=extras_of(state_dict),
    **origin,
  )
  return network, card


def export(
  directory: FilePath,
  out: FilePath,
  form: Literal["safetensors", "pth"],
  naming: str | None = None,
) -> int:
  """Write a network directory as a PyTorch state dict.

  Tensors are named as in the file that the network was imported from, or
  according to `naming`.

  Returns:
    The number of tensors.

  Raises:
    UsageError: there is no network at `directory`, the naming does not fit its
      architecture, or `out` cannot be written.
  """
  network, card = load(directory)
  tensors = to_state_dict(network, naming or card.naming, card.extras)
  write = {"safetensors": write_safetensors, "pth": write_pth}[form]
  write(out, tensors)
  return len(tensors)
