"""Short runs of every method and command end as they did (see golden.py)."""

from pathlib import Path
import subprocess
import sys

import pytest

TESTS = Path(__file__).parent
pytestmark = pytest.mark.slow


def test_every_method_and_command_ends_as_recorded():
  done = subprocess.run(
    [sys.executable, TESTS / "golden.py", "compare", TESTS / "golden.json"],
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout + done.stderr
