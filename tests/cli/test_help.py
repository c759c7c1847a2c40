"""--help shows each flag its own text."""

import ast
from pathlib import Path

import dfkt_jax

PACKAGE = Path(dfkt_jax.__file__).parent


def dataclass_fields(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.ClassDef) and any(
      "dataclass" in ast.unparse(decorator) for decorator in node.decorator_list
    ):
      fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
      yield node.name, [f for f in fields if "ClassVar" not in ast.unparse(f)]


def is_comment(line):
  return line.lstrip().startswith("#")


def test_no_flag_has_the_text_of_the_flag_above():
  # tyro shows a comment above a field for the next field too, unless that has
  # a comment of its own.
  wrong = []
  for path in sorted(PACKAGE.rglob("*.py")):
    text = path.read_text()
    lines = ["", *text.splitlines()]  # counted from 1, as ast counts
    for name, fields in dataclass_fields(ast.parse(text)):
      for above, field in zip(fields, fields[1:]):
        own = is_comment(lines[field.lineno - 1]) or any(
          "  # " in lines[line] for line in (field.lineno, field.end_lineno)
        )
        adjacent = above.end_lineno + 1 == field.lineno
        if is_comment(lines[above.lineno - 1]) and adjacent and not own:
          wrong.append(f"{path.name} {name}.{ast.unparse(field.target)}")
  assert not wrong
