import jax
import pytest

from dfkt_jax.commands.networks import Evaluate
from dfkt_jax.devices.sharding import data_devices
from dfkt_jax.errors import UsageError
from dfkt_jax.evaluation import evaluator
from dfkt_jax.network import Classification, InputSpec
from tests.networks import save_tiny

SPEC = InputSpec(*(8, 8, 1), (0.5,), (0.5,), Classification(10))


def test_an_evaluation_is_the_same_on_any_mesh(tmp_path, monkeypatch):
  place = tmp_path / "network"
  save_tiny(place, SPEC)
  batches = set()

  def split(images):
    batches.add((data_devices(), len(images)))
    return images

  monkeypatch.setattr(evaluator, "shard", split)
  found = [
    Evaluate(place, "digits/test", teacher=place, mesh=mesh).run()
    for mesh in ("data=1", "data=3", None)
  ]
  # Whatever the 500 images of the set are, devices can share a batch evenly.
  assert batches == {(1, 500), (3, 501), (jax.device_count(), 504)}
  for name in ("accuracy", "negative_log_likelihood", "calibration_error"):
    figures = [one[name] for one in found]
    assert figures == pytest.approx([figures[0]] * 3, abs=1e-5)
  assert found[0]["agreement"] == 1.0
  with pytest.raises(UsageError, match="--mesh data=99"):
    Evaluate(place, "digits/test", mesh="data=99").run()
