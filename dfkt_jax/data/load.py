"""Loading of datasets from texts such as npz:digits.npz/test[:500]."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
from pathlib import Path
import re

from dfkt_jax.data import digits, fonts, idx, image_files, npz, tfds_source
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

Size = tuple[int, int] | None
# (whole text, location after the colon, split, `size` and `crop` of `load`)
Reader = Callable[[str, str, str | None, Size, float], Dataset]

READERS: Mapping[str, Reader] = {
  "digits": lambda t, at, split, *_: digits.read(t, split or "test"),
  "fonts": lambda t, at, split, *_: fonts.read(t, split or "test"),
  "fashion_mnist": lambda t, at, split, *_: idx.read_fashion_mnist(
    t, split or "test"
  ),
  "idx": lambda t, at, split, *_: idx.read(t, Path(at), split or "test"),
  "npz": lambda t, at, split, *_: npz.read(t, Path(at), split),
  "folder": lambda t, at, _, *size: image_files.read_folder(t, Path(at), *size),
  "zip": lambda t, at, _, *size: image_files.read_zip(t, Path(at), *size),
  "tfds": lambda t, at, split, *_: tfds_source.read(t, at, split),
}
_WITHOUT_LOCATION = ("digits", "fonts", "fashion_mnist")
_SPLITS = {
  **dict.fromkeys((*_WITHOUT_LOCATION, "npz"), ("train", "test")),
  "idx": ("train", "test", "t10k"),
}
EXPECTED = (
  "expected digits, fonts, fashion_mnist, idx:DIR, npz:FILE, folder:DIR,"
  " zip:FILE or tfds:NAME, optionally with /train or /test and a slice such as"
  " [:500]"
)


def load(text: str, size: Size = None, crop: float = 1.0) -> Dataset:
  """Load the dataset of a text such as npz:digits.npz/test[:500].

  The default split is the held-out one, `test`. Datasets without splits are
  loaded as a whole: folders, zip files, and npz files without an array `train`.

  Args:
    text: kind, location, split and slice of the dataset.
    size: (height, width) to which folder: and zip: resize and crop their
      images while they read them.
    crop: share of the shorter side that the crop keeps.

  Raises:
    UsageError: the text is unknown, or the data do not exist, are broken, or
      are empty.
  """
  body, bounds = parse_slice(text)
  kind, colon, location = body.partition(":")
  split = None
  if not colon:
    kind, _, split = body.partition("/")
    split = split or None
  if (
    kind not in READERS
    or bool(colon) == (kind in _WITHOUT_LOCATION)
    or (colon and not location)
  ):
    close = difflib.get_close_matches(kind, READERS, n=1)
    hint = f"did you mean {close[0]}? " if close and close[0] != kind else ""
    raise UsageError(f"dataset {text!r} is unknown; {hint}{EXPECTED}")
  if colon and kind not in ("folder", "zip"):
    location, split = parse_split(kind, location)
  if split is not None and split not in _SPLITS.get(kind, (split,)):
    raise UsageError(
      f"dataset {text!r} has no split {split!r}: expected"
      f" {' or '.join('/' + s for s in _SPLITS[kind])}"
    )
  dataset = READERS[kind](text, location, split, size, crop)
  chosen = dataclasses.replace(
    dataset, images=dataset.images[bounds], labels=dataset.labels[bounds]
  )
  if not len(chosen.labels):
    raise UsageError(
      f"dataset {text!r} has no image: expected a slice that keeps some of its"
      f" {len(dataset.labels)} images; give another slice or dataset"
    )
  return chosen


def parse_slice(text: str) -> tuple[str, slice]:
  """Split a text into the part before a slice such as [:500], and the slice.

  Raises:
    UsageError: the text ends in another kind of slice, such as tfds's [:10%].
  """
  match = re.fullmatch(r"(.*)\[(-?\d*):(-?\d*)\]", text)
  if not match:
    if re.search(r"\[[^\[\]/]*[:%][^\[\]/]*\]$", text):
      raise UsageError(
        f"dataset {text!r} ends in an unknown slice: expected whole numbers"
        " with a colon; give one such as [:1000]"
      )
    return text, slice(None)
  first, last = (int(bound) if bound else None for bound in match.groups()[1:])
  return match[1], slice(first, last)


def parse_split(kind: str, location: str) -> tuple[str, str | None]:
  """Split a location into a path or name and a split, or None.

  A location that exists as a path is not split.
  """
  head, slash, tail = location.rpartition("/")
  known = _SPLITS.get(kind)
  is_split = known is None or tail in known
  if slash and is_split and not Path(location).exists():
    return head, tail
  return location, None
