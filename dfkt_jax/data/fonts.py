"""Printed characters, drawn with the fonts that come with matplotlib.

The digits are a source domain for scikit-learn's handwritten ones: they have
the same size and depth, and gray levels are averages over a bitmap of four
times the size.
"""

from pathlib import Path

import numpy as np

from dfkt_jax.data.dataset import Dataset

SIZE = 8  # pixels along a side of an image
_BITMAP = 4 * SIZE
# Text faces; the other files in the folder are symbols.
_FACES = (
  *("DejaVuSans", "DejaVuSans-*", "DejaVuSansMono*"),
  *("DejaVuSerif", "DejaVuSerif-*", "STIXGeneral*"),
  *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
_IMAGES = {"train": 2000, "test": 500}


def read(name: str, split: str) -> Dataset:
  """Return digits, `train` (2,000) or `test` (500), with equal classes."""
  rng = np.random.default_rng(list(_IMAGES).index(split))
  digits = "0123456789"
  images = render(rng, digits, _IMAGES[split] // len(digits))
  labels = np.tile(np.arange(10, dtype=np.int32), _IMAGES[split] // 10)
  return Dataset(name, images, labels, tuple(digits))


def render(
  rng: np.random.Generator, characters: str, rounds: int
) -> np.ndarray:
  """Draw all characters in their order, `rounds` times, white on black.

  Each has a random face, size, width, slant, rotation and position.

  Returns:
    uint8[rounds * len(characters), 8, 8, 1].
  """
  fonts = _fonts()
  bitmaps = np.stack(
    [
      _draw(rng, fonts[rng.integers(len(fonts))], character)
      for _ in range(rounds)
      for character in characters
    ]
  )
  blocks = bitmaps.reshape(-1, SIZE, 4, SIZE, 4).mean((2, 4))
  return np.round(blocks * 255).astype(np.uint8)[..., None]


def _fonts():
  import matplotlib
  from PIL import ImageFont

  folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
  files = {file for face in _FACES for file in folder.glob(f"{face}.ttf")}
  return [ImageFont.truetype(file, 48) for file in sorted(files)]


def _draw(rng, font, character):
  """Draw a character as bool[32, 32]."""
  from PIL import Image, ImageDraw

  left, top, right, bottom = font.getbbox(character)
  page = Image.new("L", (right - left, bottom - top))
  ImageDraw.Draw(page).text((-left, -top), character, fill=255, font=font)
  height = rng.uniform(0.8, 1.0) * _BITMAP
  width = min(height * page.width / page.height, 0.8 * _BITMAP)
  width *= rng.uniform(0.8, 1.2)
  angle, slant = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(-0.2, 0.2)
  cos, sin = np.cos(angle), np.sin(angle)
  # The affine map from coordinates of the bitmap to coordinates of the page.
  scale = np.diag([page.width / width, page.height / height])
  matrix = scale @ np.array([[1.0, slant], [0.0, 1.0]])
  matrix = matrix @ np.array([[cos, sin], [-sin, cos]])
  center = _BITMAP / 2 + rng.uniform(-1.5, 1.5, 2)
  x, y = np.array([page.width, page.height]) / 2 - matrix @ center
  a, b, d, e = matrix.ravel()
  drawn = page.transform(
    (_BITMAP, _BITMAP),
    Image.Transform.AFFINE,
    (a, b, x, d, e, y),
    Image.Resampling.BILINEAR,
  )
  return np.asarray(drawn) > 127
