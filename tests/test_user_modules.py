"""A user's own file: what it has to hold, and the sentences otherwise."""

import importlib
import importlib.util
import pkgutil
import sys

import pytest

from dfkt_jax import methods, user_modules
from dfkt_jax.errors import UsageError
from dfkt_jax.runs import workdir
from dfkt_jax.user_modules import version_0_1

HEAD = """
import dataclasses
from typing import ClassVar

"""
SYNTHESIZER = (
  HEAD
  + """
@dataclasses.dataclass(frozen=True)
class Mine:
  rate: float = 0.1

  def init(self, key, context): ...
  def step(self, key, state, context): ...
  def sample(self, key, state, count): ...
"""
)
SELECTOR = (
  HEAD
  + """
@dataclasses.dataclass(frozen=True)
class Mine:
  def select(self, rng, scores, count): ...
"""
)
LEARNER = (
  HEAD
  + """
@dataclasses.dataclass(frozen=True)
class Mine:
  def init(self, key, student, context): ...
  def step(self, key, state, context): ...
  def student(self, state): ...
"""
)
ADAPTER = (
  HEAD
  + """
@dataclasses.dataclass(frozen=True)
class Mine:
  def init(self, key, context): ...
  def step(self, key, state, context): ...
  def network(self, state): ...
"""
)
CODE = {
  "synthesizer": SYNTHESIZER,
  "source": SYNTHESIZER,
  "learner": LEARNER,
  "adapter": ADAPTER,
}


@pytest.fixture
def load(tmp_path):
  def load(code, kind="source"):
    file = tmp_path / "mine.py"
    file.write_text(code)
    return user_modules.load_method(f"{file}:Mine", kind)

  return load


@pytest.fixture
def refused(load):
  def refused(code, kind="source"):
    with pytest.raises(UsageError) as error:
      load(code, kind)
    assert "mine.py" in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)

  return refused


@pytest.mark.parametrize(
  ("code", "kind"), [*((c, k) for k, c in CODE.items()), (SELECTOR, "source")]
)
def test_a_class_that_meets_its_contract(load, code, kind):
  assert load(code, kind).__name__ == "Mine"


def test_optional_functions_and_more(load):
  more = """
  recipe: ClassVar = None

  def restart(self, key, state, context): ...
  def stages(self, steps): ...
  def prepare(self, rng, context): ...
  def objective(self, images, weight=1.0): ...
  def label(self, images): ...
  def stop(self): ...
  def _relable(self): ...
  @property
  def width(self): return 3
"""
  load(SYNTHESIZER + more)
  more = "  def relabel(self, key, state, context): ...\n"
  load(ADAPTER + more, "adapter")
  more = "  def summarize(self, rng, scores, selection): ...\n"
  load(SELECTOR + more)
  default = SYNTHESIZER.replace("key, context)", "key, context, scale=1.0)")
  load(default)


def test_files_of_one_name_are_modules_of_their_own(tmp_path):
  kinds = []
  for folder, rate in (("a", 0.1), ("b", 0.2)):
    file = tmp_path / folder / "method.py"
    file.parent.mkdir()
    file.write_text(SYNTHESIZER.replace("0.1", str(rate)))
    kinds.append(user_modules.load_method(f"{file}:Mine", "source"))
  a, b = kinds
  assert a.__module__ != b.__module__
  assert [sys.modules[kind.__module__].Mine for kind in kinds] == kinds
  digest = lambda kind: workdir.settings(kind())["code_sha256"]
  assert digest(a) != digest(b)
  (tmp_path / "b" / "method.py").write_text(SYNTHESIZER)
  assert digest(a) == digest(b)


def test_a_file_is_imported_again_only_when_it_changed(tmp_path, load):
  first = load(SYNTHESIZER)
  assert load(SYNTHESIZER) is first
  (tmp_path / "c").mkdir()
  again = f"{tmp_path}/c/../mine.py:Mine"
  assert user_modules.load_method(again, "source") is first
  # Of the same size and in the same second.
  changed = load(SYNTHESIZER.replace("0.1", "0.2"))
  assert (first().rate, changed().rate) == (0.1, 0.2)
  with pytest.raises(UsageError, match="division"):
    load("1 / 0")
  assert load(SYNTHESIZER) is not first
  assert not list(tmp_path.rglob("*.pyc"))


def test_a_file_or_a_class_that_is_not_there(refused, tmp_path):
  with pytest.raises(UsageError, match="there is no file"):
    user_modules.load_method(f"{tmp_path}/none.py:Mine", "source")
  (tmp_path / "mine.txt").write_text("")
  with pytest.raises(UsageError, match="not a Python file"):
    user_modules.load_method(f"{tmp_path}/mine.txt:Mine", "source")
  assert "has no dataclass 'Mine'" in refused("Other = 1")
  assert "has no dataclass 'Mine'" in refused("class Mine: ...")
  assert "ZeroDivisionError: division by zero; correct" in refused("1 / 0")


def test_a_class_is_frozen_and_needs_no_arguments(refused):
  thawed = SYNTHESIZER.replace("(frozen=True)", "")
  assert "Mine is not frozen" in refused(thawed)
  error = refused(SYNTHESIZER.replace(" = 0.1", ""))
  assert "cannot be made without arguments" in error
  assert "give every field a default" in error


@pytest.mark.parametrize(
  ("kind", "function"),
  [
    ("source", "sample"),
    ("synthesizer", "step"),
    ("learner", "student"),
    ("adapter", "network"),
    ("adapter", "init"),
  ],
)
def test_a_missing_function_is_named(refused, kind, function):
  error = refused(CODE[kind].replace(f"def {function}", "def _other"), kind)
  assert f"has no {function}: the contract" in error


def test_a_selector_makes_no_images_for_synthesize(load, refused):
  error = refused(SELECTOR, "synthesizer")
  assert "has no init and no sample and no step" in error
  # A class that is both makes some.
  for kind in ("source", "synthesizer"):
    both = SYNTHESIZER + "  def select(self, rng, scores, count): ..."
    load(both, kind)


@pytest.mark.parametrize(
  ("code", "kind", "function", "contract"),
  [
    (SYNTHESIZER, "source", "relabel", "Adapter (init, network, step)"),
    (SYNTHESIZER, "source", "student", "Learner (init, step, student)"),
    (SYNTHESIZER, "source", "summarize", "Selector (select)"),
    (SYNTHESIZER, "synthesizer", "summarize", "Selector (select)"),
    (SELECTOR, "source", "restart", "Synthesizer (init, sample, step)"),
    (SELECTOR, "source", "init", "Synthesizer (init, sample, step)"),
    (SELECTOR, "source", "sample", "Synthesizer (init, sample, step)"),
    (LEARNER, "learner", "stages", "Synthesizer (init, sample, step)"),
    (LEARNER, "learner", "network", "Adapter (init, network, step)"),
    (ADAPTER, "adapter", "prepare", None),
    (ADAPTER, "adapter", "sample", "Synthesizer (init, sample, step)"),
    (ADAPTER, "adapter", "select", "Selector (select)"),
  ],
)
def test_a_hook_that_is_never_called_is_refused(
  load, refused, code, kind, function, contract
):
  code += f"  def {function}(self, rng, context): ...\n"
  if contract is None:
    load(code, kind)
    return
  error = refused(code, kind)
  assert f"function {function!r}, which nothing calls" in error
  assert f"belongs to the contract {contract}" in error


@pytest.mark.parametrize(
  ("kind", "written", "hook"),
  [
    ("adapter", "relable", "relabel"),
    ("adapter", "online_decision", "online_decisions"),
    ("adapter", "networks", "network"),
    ("source", "restrat", "restart"),
    ("source", "samples", "sample"),
    ("source", "stage", "stages"),
    ("source", "selekt", "select"),
    ("source", "summarise", "summarize"),
    ("synthesizer", "re_start", "restart"),
    ("learner", "prepaer", "prepare"),
    ("learner", "students", "student"),
  ],
)
def test_a_function_one_letter_off_a_hook_is_refused(
  refused, kind, written, hook
):
  error = refused(CODE[kind] + f"  def {written}(self, key): ...\n", kind)
  assert f"function {written!r}" in error
  assert f"call it {hook!r}" in error
  # The misspelt function instead of a required one, too.
  code = CODE[kind].replace(f"def {hook}", f"def {written}")
  assert hook in refused(code + f"  def {written}(self): ...\n", kind)


@pytest.mark.parametrize(
  ("kind", "code"),
  [
    ("source", SYNTHESIZER.replace("context", "teacher, student")),
    (
      "source",
      SELECTOR + "  def step(self, key, state, images, teacher, kd): ...\n",
    ),
    ("adapter", ADAPTER.replace("state, context", "state, batch, course")),
    (
      "adapter",
      ADAPTER.replace("key, context", "key, source, answers, course"),
    ),
  ],
)
def test_a_class_of_version_0_1_is_refused(refused, kind, code):
  error = refused(code, kind)
  assert "of version 0.1" in error
  assert "step(self, key, state, context)" in error
  assert "CONTRIBUTING.md" in error


def test_other_parameters_are_refused(refused):
  error = refused(SYNTHESIZER.replace("state, count", "count"))
  assert "sample cannot be called as sample(key, state, count)" in error
  code = SYNTHESIZER + "  def restart(self, state): ...\n"
  error = refused(code)
  assert "restart cannot be called as restart(key, state, context)" in error
  both = SYNTHESIZER + "  def select(self, scores): ...\n"
  for kind in ("source", "synthesizer"):
    error = refused(both, kind)
    assert "select cannot be called as select(rng, scores, count)" in error


@pytest.mark.parametrize(
  ("line", "now"),
  [
    ("from dfkt_jax.synthesis.contract import Batch", "contracts"),
    ("from dfkt_jax.adaptation.course import FROZEN", "adaptation.recipe"),
    ("import dfkt_jax.driver", "runs.driver"),
    ("from dfkt_jax import parallel", "devices.sharding, devices.mesh or"),
    ("from dfkt_jax import loops, placement", "devices.loops"),
    ("from dfkt_jax.commands import offline", "commands.distill"),
    ("from dfkt_jax.commands import batches", "commands.synthesis_plan"),
    ("from dfkt_jax.data.parts import OPEN", "data.chunked"),
    ("import dfkt_jax.synthesis.pixel_stages", "synthesis.deep_inversion"),
    ("import dfkt_jax\ndfkt_jax.loops", "devices.loops"),
  ],
)
def test_a_module_of_version_0_1_is_told_by_its_new_path(refused, line, now):
  error = refused(f"{line}\n{SYNTHESIZER}")
  assert "is of version 0.1: import from" in error
  assert f"import from dfkt_jax.{now}" in error


def test_a_missing_module_of_somebody_else_is_not_of_version_0_1(refused):
  for line in ("import parallel", "from dfkt_jax.contracts import Studies"):
    assert "; correct the file" in refused(line)


@pytest.mark.parametrize(
  ("line", "old", "new"),
  [
    (
      "from dfkt_jax.distillation.transfer import Transfer",
      "distillation.transfer.Transfer",
      "distillation.recipe.Recipe",
    ),
    (
      "from dfkt_jax.openworld.contract import (\n  Study,\n)",
      "openworld.contract.Study",
      "distillation.recipe.Recipe",
    ),
    (
      "from dfkt_jax.adaptation.course import Course",
      "adaptation.course.Course",
      "adaptation.recipe.Recipe",
    ),
    (
      "from dfkt_jax.adaptation.contract import Answers, Batch",
      "adaptation.contract.Answers",
      "contracts.Predictions",
    ),
    (
      "from dfkt_jax.commands.offline import DistillOffline",
      "commands.offline.DistillOffline",
      "commands.distill.Distill",
    ),
    (
      "from dfkt_jax.commands.openworld import DistillOpenWorld as Distill",
      "commands.openworld.DistillOpenWorld",
      "commands.distill.Distill",
    ),
    (
      "from dfkt_jax.losses.information import entropies",
      "losses.information.entropies",
      "losses.information.entropy",
    ),
    (
      "from dfkt_jax.losses import relation\nrelation.normalise",
      "losses.relation.normalise",
      "losses.relation.normalize",
    ),
  ],
)
def test_a_name_of_version_0_1_is_told_by_its_new_one(refused, line, old, new):
  error = refused(f"{line}\n{SYNTHESIZER}")
  assert f"dfkt_jax.{old} of version 0.1 is now dfkt_jax.{new}" in error
  # The module is named too where another of its names is imported.
  assert ("import from dfkt_jax.contracts instead" in error) == (
    "Batch" in line
  )


@pytest.mark.parametrize(
  ("line", "sentence"),
  [
    (
      "Distill(method=DFQ(), transfer=None)",
      "Distill.method is of version 0.1: Distill now takes source=, learner="
      " and recipe=",
    ),
    ("Distill(transfer=None)", "Distill.transfer is of version 0.1: Distill"),
    ("Distill.method", "Distill now takes source=, learner= and recipe="),
    ("Distill(DFQ(), DFQ.transfer)", "its KD is DFQ.learner"),
    ("DFQ().transfer", "its steps are now DFQ.recipe"),
    ("DFND.study", "its steps are now DFND.recipe and its KD is DFND.learner"),
    ("KD(steps=3)", "KD.steps is of version 0.1: they are now the steps of"),
    ("dataclasses.replace(KD(), steps=3)", "the steps of Distill's recipe="),
    ("Recipe(kd=KD())", "it is now Distill's learner=, such as KD(...)"),
    ("Recipe(pool_size=8)", "Recipe now has memory_size="),
    ("Adapt(method=SHOT(), course=None)", "Adapt now takes recipe=, a dfkt"),
    ("SHOT.course", "SHOT.course is of version 0.1: it is now SHOT.recipe"),
    ("DFND(noise_lr=1.0)", "setting of Distill's learner=, a NoiseAdaptation"),
  ],
)
def test_a_field_of_version_0_1_is_told_by_what_it_is_now(
  refused, line, sentence
):
  error = refused(
    "import dataclasses\n"
    "from dfkt_jax import Adapt, Distill\n"
    "from dfkt_jax.adaptation.shot import SHOT\n"
    "from dfkt_jax.distillation.kd import KD\n"
    "from dfkt_jax.distillation.recipe import Recipe\n"
    "from dfkt_jax.openworld.dfnd import DFND\n"
    f"from dfkt_jax.synthesis.dfq import DFQ\n{line}"
  )
  assert sentence in error
  assert "correct the file" not in error


def test_a_field_of_no_version(refused):
  head = "from dfkt_jax.distillation.kd import KD\n"
  for line in (
    "KD(stepps=3)",
    "KD.stepps",
    "'x'.transfer",
    "KD(1, 2, *[3] * 99)",
  ):
    assert "; correct the file" in refused(head + line)


def test_old_modules_are_gone_and_new_ones_are_there():
  is_there = lambda name: (
    importlib.util.find_spec(f"dfkt_jax.{name}") is not None
  )
  for old, new in version_0_1.OLD_MODULES.items():
    assert not is_there(old), old
    for name in new.replace(" or ", ", ").split(", "):
      assert is_there(name), name


def test_old_names_are_gone_and_new_ones_are_there():
  for old, new in version_0_1.OLD_NAMES.items():
    module, _, name = old.rpartition(".")
    if module not in version_0_1.OLD_MODULES:
      there = importlib.import_module(f"dfkt_jax.{module}")
      assert name not in vars(there), old
    pkgutil.resolve_name(f"dfkt_jax.{new}")


@pytest.mark.parametrize(
  ("known", "kind"),
  [
    (methods.SYNTHESIZERS, "synthesizer"),
    ({**methods.SYNTHESIZERS, **methods.SELECTORS}, "source"),
    (methods.LEARNERS, "learner"),
    (methods.ADAPTERS, "adapter"),
  ],
)
def test_our_own_methods_meet_their_contracts(known, kind):
  for name in known:
    user_modules.check(methods.find(name, known, kind), kind, name)
