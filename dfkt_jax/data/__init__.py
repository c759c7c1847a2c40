"""Datasets by name, as arrays."""

from dfkt_jax.data.batches import padded_batches
from dfkt_jax.data.dataset import Dataset, fit
from dfkt_jax.data.load import load

__all__ = ["Dataset", "fit", "load", "padded_batches"]
