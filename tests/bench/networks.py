"""Networks so small that a step of a workload takes milliseconds."""

import pytest

from dfkt_jax.bench import workloads
from dfkt_jax.bench.workloads import Settings

SETTINGS = Settings(batch=16, steps=2, student_steps=2, synthesis_steps=2)


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(workloads, "NETWORKS", {"resnet20": (4, (1, 1))})
  monkeypatch.setattr(workloads, "WIDTHS", (4, 4, 4))
  monkeypatch.setattr(workloads, "LATENT", 8)
  monkeypatch.setattr(workloads, "MEMORY", 64)
