"""Batches of images as one picture, and pictures as PNG files."""

import io
import math
import os
from typing import Any

import numpy as np

from dfkt_jax import files

_TILE = 32  # pixels a tile needs for a person to see what is on it
_GAP = 128  # mid-grey parts black tiles as well as white ones


def grid(
  images: Any,
  columns: int | None = None,
  pad: int = 2,
  scale: int | None = None,
) -> np.ndarray:
  """Tiles images row by row into one uint8[height, width, 3].

  Args:
    images: f32[n, h, w, c] in [0, 1] (clipped; nan is black) or uint8, with
      c 1 (grey) or 3.
    columns: tiles in a row; a square by default.
    pad: grey pixels around every tile.
    scale: integer enlargement, nearest neighbour; by default the least that
      makes tiles of 32 pixels.
  """
  tiles = _bytes(np.asarray(images))
  count, height, width, _ = tiles.shape
  columns = columns or math.ceil(math.sqrt(count))
  scale = scale or math.ceil(_TILE / min(height, width))
  if columns < 1 or scale < 1 or pad < 0:
    raise ValueError(f"columns={columns}, pad={pad}, scale={scale} is no grid")
  tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
  rows = math.ceil(count / columns)
  high, wide = height * scale + pad, width * scale + pad
  shape = (rows * high + pad, columns * wide + pad, 3)
  picture = np.full(shape, _GAP, np.uint8)
  for index, tile in enumerate(tiles):
    row, column = divmod(index, columns)
    top, left = row * high + pad, column * wide + pad
    picture[top : top + high - pad, left : left + wide - pad] = tile
  return picture


def save_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
  """Writes uint8[h, w] or uint8[h, w, 3] as a PNG, whole or not at all."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(np.asarray(array)).save(buffer, format="PNG")
  files.write_atomic(path, buffer.getvalue())


def _bytes(images: np.ndarray) -> np.ndarray:
  """uint8[n, h, w, c], c 1 or 3, from floats in [0, 1] or bytes."""
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
