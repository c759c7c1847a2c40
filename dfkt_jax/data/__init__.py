"""Datasets: loading by name, resizing and batching."""

from dfkt_jax.data.batches import padded_batches
from dfkt_jax.data.dataset import Dataset, resize
from dfkt_jax.data.load import load

__all__ = ["Dataset", "load", "padded_batches", "resize"]
