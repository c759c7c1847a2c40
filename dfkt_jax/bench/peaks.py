"""What devices could do at most, to say which share of it was done.

Dense arithmetic a second, by the name JAX gives a device. The makers' own
figures: with "sparsity" halved, at boost clocks. "f32" is what XLA does with
f32 convolutions and matrix products unless told otherwise: TF32 on NVIDIA's
GPUs from Ampere on, one bf16 pass on TPUs.
"""

from typing import NamedTuple


class Peak(NamedTuple):
  name: str  # how the device's name begins, or all of it
  bf16: float  # FLOP/s of one device as JAX counts devices
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
  """FLOP/s of one device at "bf16" or "f32"; None where it is not known.

  A CPU's is not: its clock is not the one it is sold by, and what counts is
  which instructions the machine's owner lets it have.
  """
  for entry in PEAKS:
    rest = device_kind.removeprefix(entry.name)
    # "NVIDIA L40" is no "NVIDIA L4".
    if rest != device_kind and not rest[:1].isalnum():
      return getattr(entry, precision)
  return None
