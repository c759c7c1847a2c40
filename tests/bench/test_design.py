import pytest

from dfkt_jax.bench import design


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  monkeypatch.setattr(design, "BATCH", 8)
  monkeypatch.setattr(design, "STEPS", 2)
  monkeypatch.setattr(design, "REPEATS", 1)


def test_loops_are_timed_both_ways(monkeypatch):
  monkeypatch.setattr(design, "ARCHS", {"convnet-half": (8, 8, 1)})
  (record,) = design.loops()
  assert record["arch"] == "convnet-half"
  seconds = record["seconds_per_step"]
  assert seconds > 0
  in_scan = record["seconds_per_step_in_scan"]
  assert record["ratio"] == pytest.approx(in_scan / seconds, rel=0.1)


def test_every_form_of_pooling_is_timed(monkeypatch):
  monkeypatch.setattr(design, "FEW_CHANNELS", ((8, 1, 2, 5, 2),))
  monkeypatch.setattr(design, "MORE_CHANNELS", ((8, 2, 4, 3, 1),))
  few, more = design.pooling()
  assert few["seconds_folded"] > 0
  assert "seconds_folded" not in more
  for record in (few, more):
    assert record["seconds_window"] > 0
    assert record["seconds_slices"] > 0
