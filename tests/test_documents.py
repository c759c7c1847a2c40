"""The commands and the code of README and CONTRIBUTING work."""

from pathlib import Path
import re

import jax
import numpy as np
import pytest

from dfkt_jax import data, teachers
from dfkt_jax.cli import dispatch
from dfkt_jax.runs.metrics import read_metrics
from tests.networks import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  place = tmp_path_factory.mktemp("teacher") / "t"
  network = jax.device_get(tiny(widths=(16, 32, 64)))
  teachers.save(place, network, teachers.describe(network, "convnet-half"))
  return place


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  place = tmp_path_factory.mktemp("data") / "digits.npz"
  np.savez(place, images=data.load("digits/train").images[:40])
  return f"npz:{place}"


def python_blocks(name: str) -> list[str]:
  text = (ROOT / name).read_text()
  return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


DISTILL = "--student convnet-half --steps 4 --student-steps 2 --batch-size 8"
# The file and class that CONTRIBUTING names, and a command that runs them.
COMMANDS = {
  "entropy_game.py:EntropyGame": (
    f"distill {{method}} --teacher {{teacher}} {DISTILL} --latent 4"
    " --generator-widths 4 4 --entropy-weight 0.5"
  ),
  "attention.py:AttentionTransfer": (
    f"distill noise --learner {{method}} --teacher {{teacher}} {DISTILL}"
    " --attention-weight 3 --temperature 2"
  ),
  "doubtful.py:Doubtful": (
    "distill {method} --pool {digits} --num-images 20 --teacher {teacher}"
    f" {DISTILL} --pool-cache {{cache}}"
  ),
  "sharpen.py:Sharpen": (
    "adapt {method} --source {teacher} --target {digits} --batch-size 8"
    " --epochs 2 --threshold 0.5 --pool-cache {cache}"
  ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_method_of_each_kind_in_one_file(name, teacher, digits, tmp_path):
  file, _, method = name.partition(":")
  text = (ROOT / "CONTRIBUTING.md").read_text()
  assert name in text
  (block,) = [
    block
    for block in python_blocks("CONTRIBUTING.md")
    if f"class {method}" in block
  ]
  (tmp_path / file).write_text(block)
  words = COMMANDS[name].format(
    method=f"{tmp_path / file}:{method}",
    teacher=teacher,
    digits=digits,
    cache=tmp_path / "cache",
  )
  work = tmp_path / "w"
  dispatch.main([*words.split(), "--mesh", "data=1", "--workdir", str(work)])
  assert (work / "result.json").exists()
  last = read_metrics(work)[-1]
  assert all(np.isfinite(value) for value in last.values())
  if method == "AttentionTransfer":
    assert last["distillation/attention"] > 0


def test_every_method_of_contributing_is_tested():
  blocks = python_blocks("CONTRIBUTING.md")
  assert len(blocks) == len(COMMANDS)


@pytest.mark.slow
def test_the_python_of_the_readme(teacher):
  (code,) = python_blocks("README.md")
  assert '"t20"' in code
  names: dict = {}
  exec(code.replace('"t20"', repr(str(teacher))), names)
  assert names["batch"].images.shape == (64, 8, 8, 1)
  assert jax.numpy.isfinite(names["info"].loss)


def test_every_command_of_the_readme_exists():
  readme = (ROOT / "README.md").read_text()
  commands = set(re.findall(r"`dfkt (\w+)", readme))
  assert commands <= {name.split()[0] for name in dispatch._COMMANDS}
  for name in re.findall(r"`(docs/[\w.]+|experiments/[\w.]+)`", readme):
    assert (ROOT / name).exists()


def test_the_test_command_is_the_one_that_ci_runs():
  readme = (ROOT / "README.md").read_text()
  commands = re.findall(r"^    (.*-m pytest.*)$", readme, re.MULTILINE)
  assert len(commands) == 1
  assert "README.md" in (ROOT / ".ci" / "run").read_text()
