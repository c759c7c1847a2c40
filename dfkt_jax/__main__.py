"""Entry point of `dfkt` and `python -m dfkt_jax`."""

from dfkt_jax.devices import huge_pages


def main() -> None:
  """Run the command line."""
  # Before the imports, which a restarted process does again.
  huge_pages.restart_process()
  from dfkt_jax.cli import dispatch

  dispatch.main()


if __name__ == "__main__":
  main()
