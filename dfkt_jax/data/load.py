"""DATA, as commands take it, to arrays."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
from pathlib import Path
import re

from dfkt_jax.data import digits, fonts, idx, image_files, npz, tfds_source
from dfkt_jax.data.dataset import Dataset
from dfkt_jax.errors import UsageError

Size = tuple[int, int] | None
# (whole text, what stands behind the colon, split, `size` and `crop` of `load`)
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
# Those that need no file or folder behind a colon.
_ALONE = ("digits", "fonts", "fashion_mnist")
_SPLITS = {
  **dict.fromkeys((*_ALONE, "npz"), ("train", "test")),
  "idx": ("train", "test", "t10k"),
}
EXPECTED = (
  "expected digits, fonts, fashion_mnist, idx:DIR, npz:FILE, folder:DIR,"
  " zip:FILE or tfds:NAME, perhaps with /train or /test and a slice such as"
  " [:500]"
)


def load(text: str, size: Size = None, crop: float = 1.0) -> Dataset:
  """The dataset of a text such as npz:digits.npz/test[:500].

  Without a split it is the held-out one, `test`, where there is a split, and
  everything otherwise: folders, zip files, and npz files without an array
  `train`. `size` (height, width) is what folder: and zip: resize and crop
  their images to while they read them, `crop` the share that the crop keeps.

  Raises:
    UsageError: the text says nothing we know, or what it names is not there, is
      broken, or is empty.
  """
  body, bounds = split_slice(text)
  kind, colon, at = body.partition(":")
  split = None
  if not colon:
    kind, _, split = body.partition("/")
    split = split or None
  if kind not in READERS or bool(colon) == (kind in _ALONE) or colon and not at:
    close = difflib.get_close_matches(kind, READERS, n=1)
    hint = f"did you mean {close[0]}? " if close and close[0] != kind else ""
    raise UsageError(f"dataset {text!r} is unknown; {hint}{EXPECTED}")
  if colon and kind not in ("folder", "zip"):
    at, split = split_of(kind, at)
  if split is not None and split not in _SPLITS.get(kind, (split,)):
    raise UsageError(
      f"dataset {text!r} has no split {split!r}: expected"
      f" {' or '.join('/' + s for s in _SPLITS[kind])}"
    )
  dataset = READERS[kind](text, at, split, size, crop)
  chosen = dataclasses.replace(
    dataset, images=dataset.images[bounds], labels=dataset.labels[bounds]
  )
  if not len(chosen.labels):
    raise UsageError(
      f"dataset {text!r} has no image: it has {len(dataset.labels)} before the"
      " slice; give one that has"
    )
  return chosen


def split_slice(text: str) -> tuple[str, slice]:
  """A text without its slice such as [:500], and that slice.

  Raises:
    UsageError: it ends in another kind of slice, such as [:10%] of tfds.
  """
  match = re.fullmatch(r"(.*)\[(-?\d*):(-?\d*)\]", text)
  if not match:
    if re.search(r"\[[^\[\]/]*[:%][^\[\]/]*\]$", text):
      raise UsageError(
        f"dataset {text!r} ends in a slice that is unknown: expected whole"
        " numbers with a colon; give one such as [:1000]"
      )
    return text, slice(None)
  first, last = (int(bound) if bound else None for bound in match.groups()[1:])
  return match[1], slice(first, last)


def split_of(kind: str, at: str) -> tuple[str, str | None]:
  """What is there is a path; else its last part may be a split."""
  head, slash, tail = at.rpartition("/")
  known = _SPLITS.get(kind)
  if slash and not Path(at).exists() and (known is None or tail in known):
    return head, tail
  return at, None
