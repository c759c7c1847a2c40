"""Drift of BatchNorm between networks."""

import jax
import jax.numpy as jnp
import pytest

from dfkt_jax import models
from dfkt_jax import network as net
from dfkt_jax.network.drift import batch_norm_drift
from tests.networks import spec, tiny


def test_the_unit_is_the_sources_standard_deviation():
  source = tiny()
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x, v: (
      x + 2.0 * jnp.sqrt(v + 1e-5) if path[-1].key == "mean" else x
    ),
    source.batch_stats,
    {
      name: {"mean": stats["var"], "var": stats["var"]}
      for name, stats in source.batch_stats.items()
    },
  )
  adapted = source.replace(variables={**source.variables, "batch_stats": moved})
  assert batch_norm_drift(source, adapted) == pytest.approx(2.0, rel=1e-4)


def test_it_is_zero_where_nothing_can_be_compared():
  plain = net.init(jax.random.key(0), models.build("lenet5", 10), spec(28))
  assert batch_norm_drift(plain, plain) == 0.0
  assert batch_norm_drift(tiny(), tiny(widths=(4, 4))) == 0.0
