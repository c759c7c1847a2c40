"""Trained networks as pytrees, and functions of them and of images."""

from dfkt_jax.network.network import (
  Network,
  PyTree,
  Statistics,
  batch_norm_params,
  batch_norm_paths,
  batch_statistics,
  features,
  init,
  logits,
  num_parameters,
  require_feature,
  statistics,
  train_features,
  train_logits,
)
from dfkt_jax.network.spec import InputSpec
from dfkt_jax.network.task import (
  Classification,
  Regression,
  Segmentation,
  Task,
)

__all__ = [
  "Classification",
  "InputSpec",
  "Network",
  "PyTree",
  "Regression",
  "Segmentation",
  "Statistics",
  "Task",
  "batch_norm_params",
  "batch_norm_paths",
  "batch_statistics",
  "features",
  "init",
  "logits",
  "num_parameters",
  "require_feature",
  "statistics",
  "train_features",
  "train_logits",
]
