"""`python -m dfkt_jax` is `dfkt`."""

from dfkt_jax.cli import main

main()
