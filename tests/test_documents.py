"""What README and CONTRIBUTING tell people to type works."""

from pathlib import Path
import re

import jax
import pytest

from dfkt_jax import cli, teachers
from tests.networks import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp("teacher") / "t"
  network = jax.device_get(tiny(widths=(16, 32, 64)))
  teachers.save(place, network, teachers.describe(network, "convnet-half"))
  return place


def python_block(name: str) -> str:
  (block,) = re.findall(
    r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL
  )
  return block


def test_the_method_in_one_file_of_contributing(teacher, tmp_path):
  file = tmp_path / "bright.py"
  file.write_text(python_block("CONTRIBUTING.md"))
  words = f"distill {file}:Bright --teacher {teacher} --workdir {tmp_path}/w"
  cli.main(
    f"{words} --student convnet-half --steps 4 --student-steps 2"
    " --batch-size 8 --rate 0.2".split()
  )
  assert (tmp_path / "w" / "result.json").exists()


def test_the_python_of_the_readme(teacher):
  code = python_block("README.md")
  assert '"t20"' in code
  names: dict = {}
  exec(code.replace('"t20"', repr(str(teacher))), names)
  assert names["batch"].images.shape == (64, 8, 8, 1)
  assert jax.numpy.isfinite(names["info"].loss)


def test_every_flag_and_command_of_the_readme_is_there():
  readme = (ROOT / "README.md").read_text()
  commands = set(re.findall(r"`dfkt (\w+)", readme))
  assert commands <= {name.split()[0] for name in cli._COMMANDS}
  for name in re.findall(r"`(docs/[\w.]+|experiments/[\w.]+)`", readme):
    assert (ROOT / name).exists()


def test_the_test_command_is_the_one_ci_runs():
  readme = (ROOT / "README.md").read_text()
  commands = re.findall(r"^    (.*-m pytest.*)$", readme, re.MULTILINE)
  assert len(commands) == 1
  assert "README.md" in (ROOT / ".ci" / "run").read_text()
