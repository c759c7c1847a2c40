"""The layers of the package: their imports, and the size of files."""

import ast
from collections import defaultdict
from collections.abc import Iterator
import functools
from pathlib import Path
import re
import subprocess
import sys
import tomllib
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dfkt_jax"
PAPERS = {"synthesis", "openworld", "adaptation"}
# A package imports only its own layer and the layers above it in this list. The
# root (`dfkt_jax/__init__.py`) imports public names when they are used.
LAYERS = (
  ("errors", "files", "images"),
  ("devices",),
  ("augment",),
  ("network",),
  ("contracts",),
  ("models",),
  ("losses",),
  ("memory",),
  ("teachers",),
  ("data",),
  ("distillation",),
  ("synthesis", "openworld", "adaptation"),
  ("evaluation",),
  ("rounds",),
  ("user_modules", "methods"),
  ("runs",),
  ("report",),
  ("bench",),
  ("commands",),
  ("cli", "__main__"),
)
MAX_ROOT_MODULES, MAX_LINES = 9, 400


class Import(NamedTuple):
  importer: str  # dotted module names without "dfkt_jax."
  imported: str
  at_top: bool  # of the module, or under TYPE_CHECKING


def module_name(path: Path) -> str:
  """Return a file's module: "runs.driver", "network" or, for the root, ""."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, code: str) -> Iterator[Import]:
  """Yield the imports of the package's modules in a module's code."""

  def resolve(dotted):
    """The module of a dotted name, which may be that of a name in it."""
    parts = dotted.split(".")
    if parts[0] != "dfkt_jax":
      return None
    while (found := ".".join(parts[1:])) not in FILES:
      parts.pop()
    return found

  def walk(node, at_top):
    for child in ast.iter_child_nodes(node):
      names = []
      if isinstance(child, ast.Import):
        names = [alias.name for alias in child.names]
      elif isinstance(child, ast.ImportFrom):
        assert child.level == 0, f"{name} has a relative import"
        names = [f"{child.module}.{alias.name}" for alias in child.names]
      for imported in map(resolve, names):
        if imported is not None and imported != name:
          yield Import(name, imported, at_top)
      function = isinstance(child, ast.FunctionDef | ast.Lambda)
      yield from walk(child, at_top and not function)

  yield from walk(ast.parse(code), True)


@functools.cache
def all_imports() -> tuple[Import, ...]:
  """Return the imports of the whole package."""
  return tuple(
    found
    for name, path in FILES.items()
    for found in imports_of(name, path.read_text())
  )


def package(module: str) -> str:
  """Return the folder of a module; a module of the root is its own."""
  return module.partition(".")[0]


def find_cycle(edges: set[tuple[str, str]]) -> list[str]:
  """Return the nodes of a cycle of a directed graph, or nothing."""
  targets = defaultdict(list)
  for start, end in sorted(edges):
    targets[start].append(end)
  done: set[str] = set()

  def visit(node, path):
    if node in path:
      return [*path[path.index(node) :], node]
    if node not in done:
      for target in targets[node]:
        if cycle := visit(target, [*path, node]):
          return cycle
      done.add(node)
    return []

  return next((c for node in list(targets) if (c := visit(node, []))), [])


def test_the_reader_of_imports():
  code = """
from typing import TYPE_CHECKING
import numpy.random
import dfkt_jax.runs.driver
from dfkt_jax import files, images as pictures
from dfkt_jax.network import Network
from dfkt_jax.network.layers import parts
if TYPE_CHECKING:
  from dfkt_jax.runs import workdir
class A:
  def f(self):
    from dfkt_jax.cli import flags
    return lambda: 0
"""
  found = list(imports_of("x", code))
  at_top = [i.imported for i in found if i.at_top]
  expected = ["runs.driver", "files", "images", "network", "network.layers"]
  assert at_top == [*expected, "runs.workdir"]
  assert [i.imported for i in found if not i.at_top] == ["cli.flags"]


def test_the_finder_of_cycles():
  assert find_cycle({("a", "b"), ("b", "c"), ("a", "c")}) == []
  cycle = find_cycle({("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")})
  assert cycle == ["a", "b", "c", "a"]


def test_no_modules_import_each_other():
  edges = {(i.importer, i.imported) for i in all_imports() if i.at_top}
  cycle = find_cycle(edges)
  assert not cycle, " -> ".join(cycle)


def test_no_packages_import_each_other():
  # The root imports public names when they are used, whatever they need.
  edges = {
    (package(i.importer), package(i.imported))
    for i in all_imports()
    if i.importer
  }
  cycle = find_cycle({(a, b) for a, b in edges if a != b})
  assert not cycle, " -> ".join(cycle)


def test_imports_only_go_up_the_list_of_layers():
  layer_of = {name: i for i, layer in enumerate(LAYERS) for name in layer}
  assert set(layer_of) == {package(name) for name in FILES if name}
  wrong = [
    f"{i.importer} imports {i.imported}"
    for i in all_imports()
    if i.importer
    and i.imported
    and layer_of[package(i.imported)] > layer_of[package(i.importer)]
  ]
  assert wrong == []


def test_the_list_of_layers_is_the_table_of_contributing():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  section = text.split("## Where things are")[1].split("## ")[0]
  rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
  names = [tuple(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
  assert names == list(LAYERS)


def test_nothing_imports_the_command_line():
  found = [
    i
    for i in all_imports()
    if package(i.imported) == "cli"
    and package(i.importer) not in ("cli", "__main__")
  ]
  assert found == []


@pytest.mark.parametrize("layer", ["runs", "devices", "network"])
def test_machinery_knows_no_paper(layer):
  found = [
    i
    for i in all_imports()
    if package(i.importer) == layer and package(i.imported) in PAPERS
  ]
  assert found == []


def test_only_the_command_line_imports_commands():
  found = [
    i
    for i in all_imports()
    if package(i.imported) == "commands"
    and package(i.importer) not in ("", "cli", "commands")
  ]
  assert found == []


def test_the_root_holds_only_what_everybody_uses():
  modules = sorted(path.name for path in PACKAGE.glob("*.py"))
  assert len(modules) <= MAX_ROOT_MODULES, modules


def test_a_file_that_needs_more_lines_holds_two_ideas():
  lines = {
    name: len(path.read_text().splitlines()) for name, path in FILES.items()
  }
  assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


def test_every_folder_is_a_package():
  folders = {path.parent for path in FILES.values()}
  assert [f for f in folders if not (f / "__init__.py").exists()] == []


def run_python(code: str) -> list[str]:
  """Return the words that a new interpreter prints."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.split()


def test_importing_the_package_imports_next_to_nothing():
  loaded = run_python(
    "import sys; before = set(sys.modules)\n"
    "import dfkt_jax; print(*set(sys.modules) - before)"
  )
  ours = [name for name in loaded if name.startswith("dfkt_jax")]
  assert ours == ["dfkt_jax"]
  heavy = {"jax", "numpy", "flax", "optax", "rich", "tyro"}
  assert heavy.isdisjoint(loaded)
  assert len(loaded) < 30, loaded


def test_names_of_methods_need_no_jax():
  names = run_python(
    "import sys\n"
    "from dfkt_jax import methods\n"
    "entries = [*methods.SOURCES.values(), *methods.LEARNERS.values()]\n"
    "entries += methods.ADAPTERS.values()\n"
    "assert all(entry.title() for entry in entries)\n"
    "print('jax' in sys.modules, 'numpy' in sys.modules)"
  )
  assert names == ["False", "False"]


def test_every_public_name_is_there():
  import dfkt_jax

  assert set(dfkt_jax.__all__) <= set(dir(dfkt_jax))
  others = set(dir(dfkt_jax)) - set(dfkt_jax.__all__)
  assert all(name.startswith("__") for name in others)
  assert dir(dfkt_jax) == sorted(dir(dfkt_jax))
  for name in dfkt_jax.__all__:
    assert getattr(dfkt_jax, name) is getattr(dfkt_jax, name)
  from dfkt_jax import teachers
  from dfkt_jax.commands.train import TrainTeacher
  from dfkt_jax.evaluation.evaluator import evaluate

  assert dfkt_jax.Train is TrainTeacher
  assert dfkt_jax.load is teachers.load
  assert dfkt_jax.evaluate is evaluate
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    dfkt_jax.lod  # noqa: B018


def test_the_version_is_that_of_the_distribution():
  import dfkt_jax

  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert dfkt_jax.__version__ == project["version"]
