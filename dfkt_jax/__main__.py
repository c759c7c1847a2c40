"""The process that `dfkt` and `python -m dfkt_jax` start."""

from dfkt_jax import large_pages


def main() -> None:
  """The command line; before its imports, so that they are done once."""
  large_pages.begin_again()
  from dfkt_jax import cli

  cli.main()


if __name__ == "__main__":
  main()
