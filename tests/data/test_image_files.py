"""Unusual and broken image files, and the zip files with real photographs."""

import io
import zipfile

import numpy as np
from PIL import ExifTags, Image
import pytest

from dfkt_jax import data
from dfkt_jax.data import image_files
from dfkt_jax.data.dataset import NotAnImage
from dfkt_jax.errors import UsageError
from tests.assets import shared_data


def png(array, **options):
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "PNG", **options)
  return buffer.getvalue()


PLAIN = png(np.zeros((4, 4, 3), np.uint8))


def write_zip(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, raw in members.items():
      archive.writestr(name, raw)
  return path


def refused(text, *parts):
  with pytest.raises(UsageError) as error:
    data.load(text)
  for part in parts:
    assert part in str(error.value)


def test_hidden_files_are_ignored(tmp_path):
  members = {"a/x.png": PLAIN, "__MACOSX/a/._x.png": b"-", "a/._x.png": b"-"}
  dataset = data.load(f"zip:{write_zip(tmp_path / 'z.zip', members)}")
  assert dataset.class_names == ("a",)
  assert len(dataset.labels) == 1


def test_classes_that_are_not_the_last_folder_are_refused(tmp_path):
  members = {"n1/images/x.png": PLAIN, "n2/images/y.png": PLAIN}
  path = write_zip(tmp_path / "z.zip", members)
  refused(f"zip:{path}", "z.zip", "n1/images and n2/images", "CLASS/NAME")


def test_the_center_of_larger_images_is_cropped(tmp_path):
  # The network's 224 of 256 pixels are cropped without resampling.
  image = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
  path = write_zip(tmp_path / "z.zip", {"a/x.png": png(image)})
  found = data.load(f"zip:{path}", (224, 224), crop=224 / 256).images[0]
  np.testing.assert_array_equal(found, image[16:240, 38:262])
  # An image of the requested size is not changed.
  whole = data.load(f"zip:{path}", (256, 300), crop=224 / 256).images[0]
  np.testing.assert_array_equal(whole, image)


def test_images_of_sixteen_bits_are_refused(tmp_path):
  wide = png(np.full((4, 4), 300, np.uint16))
  path = write_zip(tmp_path / "z.zip", {"a/wide.png": wide})
  refused(f"zip:{path}", "z.zip: a/wide.png", "8 bits per channel")


def test_a_damaged_member_is_named(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
  path = write_zip(tmp_path / "z.zip", {"a/x.png": png(noise)})
  raw = bytearray(path.read_bytes())
  raw[60:80] = bytes(255 - byte for byte in raw[60:80])
  path.write_bytes(raw)
  refused(f"zip:{path}", "z.zip: a/x.png cannot be read", "repair or remove it")


def test_a_file_without_read_permission_is_named(tmp_path, monkeypatch):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x.png").write_bytes(PLAIN)

  def deny(path):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("pathlib.Path.read_bytes", deny)
  refused(f"folder:{tmp_path}", "a/x.png cannot be read", "Permission denied")


def test_any_error_of_pillow_becomes_one_sentence(tmp_path, monkeypatch):
  path = write_zip(tmp_path / "z.zip", {"a/x.png": b"not an image"})
  with pytest.raises(NotAnImage, match="recognize the image format") as error:
    data.load(f"zip:{path}")
  assert "0x" not in str(error.value)

  def fail(*_):
    raise TypeError("a tag of no type\nand more")

  monkeypatch.setattr(Image, "open", fail)
  with pytest.raises(
    NotAnImage, match=r"x.png cannot be read \(a tag of no type\)"
  ):
    data.load(f"zip:{path}")


def test_pixels_that_are_broken_halfway_are_refused(tmp_path):
  """Decode an image for which Pillow raises only the first time."""
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(noise).save(buffer, "TIFF", compression="tiff_adobe_deflate")
  raw = bytearray(buffer.getvalue())
  raw[2000:2020] = bytes(20)
  (tmp_path / "a").mkdir()
  (tmp_path / "a/x.png").write_bytes(raw)
  refused(f"folder:{tmp_path}", "a/x.png cannot be read", "repair or remove it")


def test_images_are_turned_upright(tmp_path):
  """Read orientation 6, whose first row is the right-hand side."""
  wide = np.zeros((4, 6, 3), np.uint8)
  wide[0] = 255
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  (tmp_path / "a").mkdir()
  (tmp_path / "a/x.png").write_bytes(png(wide, exif=exif))
  (image,) = data.load(f"folder:{tmp_path}").images
  assert image.shape == (6, 4, 3)
  assert (image[:, 3] == 255).all()
  assert not image[:, :3].any()
  # Broken EXIF data are ignored.
  (tmp_path / "a/x.png").write_bytes(png(wide, exif=b"Exif\0\0none"))
  (image,) = data.load(f"folder:{tmp_path}").images
  np.testing.assert_array_equal(image, wide)


def test_files_that_unpack_to_absurd_sizes_are_refused(tmp_path, monkeypatch):
  path = write_zip(tmp_path / "z.zip", {"a/x.bmp": bytes(2**20)})
  monkeypatch.setattr(image_files, "MAX_BYTES", 2**19)
  refused(f"zip:{path}", "z.zip: a/x.bmp would be unpacked to", "remove it")


def test_resizing_keeps_the_center(tmp_path):
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 255
  path = write_zip(tmp_path / "z.zip", {"a/x.png": png(wide)})
  images = data.load(f"zip:{path}", (4, 4)).images
  assert (images == 255).all()


def test_the_zip_file_of_tiny_imagenet_is_read():
  path = shared_data("tiny_imagenet_5000.zip")
  dataset = data.load(f"zip:{path}")
  assert dataset.images.shape == (5000, 64, 64, 3)
  assert len(dataset.class_names) == dataset.labels.max() + 1 == 200
  red, green, blue = np.moveaxis(dataset.images.astype(int), -1, 0)
  gray = ((red == green) & (green == blue)).all((1, 2)).mean()
  assert 0.01 < gray < 0.03


def test_the_class_numbers_in_the_names_of_real_photographs_are_read():
  path = shared_data("imagenet_sample_200.zip")
  with zipfile.ZipFile(path) as archive:
    names = sorted(n for n in archive.namelist() if n.endswith(".JPEG"))
  dataset = data.load(f"zip:{path}[:3]")
  assert dataset.labels.tolist() == [int(name[:4]) for name in names[:3]]
