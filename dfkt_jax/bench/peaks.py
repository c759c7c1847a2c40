"""Peak arithmetic of devices, of which a measured rate is a share.

FLOP/s of dense arithmetic, by the name that JAX gives a device. The figures are
the vendors' own, at boost clocks; those with "sparsity" are halved. "f32" is
XLA's default for f32 convolutions and matrix products: TF32 on NVIDIA's GPUs
from Ampere on, one bf16 pass on TPUs.
"""

from typing import NamedTuple


class Peak(NamedTuple):
  """The peak of one kind of device."""

  name: str  # the beginning of the device's name, or all of it
  bf16: float  # FLOP/s of one device, as JAX counts devices
  f32: float
  source: str


PEAKS = (
  Peak("NVIDIA H200", 989e12, 494e12, "NVIDIA H200 datasheet, SXM"),
  Peak("NVIDIA H100 PCIe", 756e12, 378e12, "NVIDIA H100 datasheet, PCIe"),
  Peak("NVIDIA H100", 989e12, 494e12, "NVIDIA H100 datasheet, SXM"),
  Peak("NVIDIA A100", 312e12, 156e12, "NVIDIA A100 datasheet"),
  Peak("NVIDIA L4", 121e12, 60e12, "NVIDIA L4 datasheet"),
  Peak("TPU v4", 275e12, 275e12, "Google Cloud, TPU v4"),
  Peak("TPU v5 lite", 197e12, 197e12, "Google Cloud, TPU v5e"),
  Peak("TPU v5e", 197e12, 197e12, "Google Cloud, TPU v5e"),
  Peak("TPU v5", 459e12, 459e12, "Google Cloud, TPU v5p"),
  Peak("TPU v5p", 459e12, 459e12, "Google Cloud, TPU v5p"),
  Peak("TPU v6", 918e12, 918e12, "Google Cloud, TPU v6e"),
)


def peak(device_kind: str, precision: str) -> float | None:
  """Return FLOP/s of one device at "bf16" or "f32"; None if unknown.

  It is unknown for CPUs, whose clock and instructions depend on the machine.
  """
  for entry in PEAKS:
    rest = device_kind.removeprefix(entry.name)
    # "NVIDIA L40" is not "NVIDIA L4".
    if rest != device_kind and not rest[:1].isalnum():
      return entry.bf16 if precision == "bf16" else entry.f32
  return None
