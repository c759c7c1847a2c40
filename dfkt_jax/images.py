"""Grids of images, and PNG files."""

import io
import math
import os
from typing import Any

import numpy as np

from dfkt_jax import files

_TILE = 32  # pixels along a tile that a person can recognize
_BACKGROUND = 128  # gray, which separates both black and white tiles


def grid(
  images: Any,
  columns: int | None = None,
  pad: int = 2,
  scale: int | None = None,
) -> np.ndarray:
  """Tile images row by row into one uint8[height, width, 3].

  Args:
    images: f32[n, h, w, c] in [0, 1] (clipped; nan is black) or uint8, with
      c 1 (gray) or 3.
    columns: number of tiles in a row; by default the grid is about square.
    pad: number of gray pixels around every tile.
    scale: integer factor of nearest-neighbor enlargement; by default the
      smallest that makes tiles of 32 pixels.
  """
  tiles = _to_uint8(np.asarray(images))
  count, height, width, _ = tiles.shape
  columns = columns or math.ceil(math.sqrt(count))
  scale = scale or math.ceil(_TILE / min(height, width))
  if columns < 1 or scale < 1 or pad < 0:
    raise ValueError(
      f"columns={columns}, pad={pad}, scale={scale}: expected columns and scale"
      " of 1 or more, and a pad of 0 or more"
    )
  tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
  rows = math.ceil(count / columns)
  row_height, column_width = height * scale + pad, width * scale + pad
  shape = (rows * row_height + pad, columns * column_width + pad, 3)
  picture = np.full(shape, _BACKGROUND, np.uint8)
  for index, tile in enumerate(tiles):
    row, column = divmod(index, columns)
    top, left = row * row_height + pad, column * column_width + pad
    bottom, right = top + height * scale, left + width * scale
    picture[top:bottom, left:right] = tile
  return picture


def save_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
  """Write uint8[h, w] or uint8[h, w, 3] as a PNG file, atomically."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(np.asarray(array)).save(buffer, format="PNG")
  files.write_atomic(path, buffer.getvalue())


def _to_uint8(images: np.ndarray) -> np.ndarray:
  """Convert floats in [0, 1] or bytes to uint8[n, h, w, c], c 1 or 3."""
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
    raise ValueError(
      f"images have shape {images.shape}, expected [n, h, w, 1 or 3], n > 0"
    )
  if images.dtype == np.uint8:
    return images
  if np.issubdtype(images.dtype, np.integer) or images.dtype == bool:
    raise ValueError(f"images are {images.dtype}, expected float or uint8")
  unit = np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1)
  return np.floor(unit * 255 + 0.5).astype(np.uint8)
