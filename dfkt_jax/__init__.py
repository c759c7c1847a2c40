"""Data-free knowledge transfer in JAX."""
