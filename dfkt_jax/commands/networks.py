"""`dfkt teacher import`, `evaluate` and `export`: networks on disk."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
from tyro.conf import Positional

from dfkt_jax import data, files, teachers
from dfkt_jax.devices.mesh import parse_mesh
from dfkt_jax.evaluation.evaluator import evaluate
from dfkt_jax.network import placement


@dataclasses.dataclass(frozen=True)
class Import:
  """Converts a PyTorch checkpoint file into a network directory.

  Reads .safetensors and torch files without torch and without running any code
  in them; every key and shape is checked.
  """

  file: Positional[Path]  # .safetensors, .pt, .pth or .th
  arch: str  # see 'dfkt list archs'
  out: Path  # the directory to write
  preset: str | None = None  # input and naming, see 'dfkt list presets'
  entry: str | None = None  # which state dict, where the file holds several

  def run(self) -> str:
    """Convert; return a line for the user."""
    network, card = teachers.import_file(
      self.file, self.arch, self.preset, self.entry
    )
    teachers.save(self.out, network, card)
    spec = network.spec
    return (
      f"{self.out}: {card.arch}, {card.parameters:,} parameters,"
      f" {spec.height}x{spec.width}x{spec.channels}, {spec.classes} classes,"
      f" sha256 {(card.source_sha256 or '')[:12]}"
    )


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Reports accuracy, per-class accuracy and calibration of a network."""

  network: Positional[Path]  # directory
  dataset: str  # labelled images, see 'dfkt list datasets'
  teacher: Path | None = None  # another network, to report agreement with
  # data=N devices to share the images (default: all; a CPU is split into two)
  mesh: str | None = None
  json: Path | None = None  # also write the figures to this file

  def run(self) -> dict:
    """Return the figures; shares are in [0, 1]."""
    mesh = parse_mesh(self.mesh)
    network, card = teachers.load(self.network)
    teacher = teachers.load(self.teacher)[0] if self.teacher else None
    spec = network.spec
    dataset = data.load(self.dataset, (spec.height, spec.width), spec.crop)
    with jax.set_mesh(mesh):
      found = evaluate(
        placement.put(network, mesh),
        dataset,
        placement.put(teacher, mesh) if teacher else None,
      )
    result = {
      "network": str(self.network),
      "arch": card.arch,
      "dataset": self.dataset,
      "dataset_shape": list(dataset.images.shape[1:]),
      "network_shape": list(spec.shape),
      "class_names": list(spec.class_names),
      **found,
    }
    if self.json:
      files.write_json(self.json, result)
    return result


@dataclasses.dataclass(frozen=True)
class Export:
  """Writes a network directory as a PyTorch state dict."""

  network: Positional[Path]  # directory
  out: Path  # the file to write
  format: Literal["safetensors", "pth"] = "safetensors"
  naming: str | None = None  # of the tensors (default: as imported)

  def run(self) -> str:
    """Write the file; return a line for the user."""
    count = teachers.export(self.network, self.out, self.format, self.naming)
    return f"{self.out}: {count} tensors ({self.format})"
