"""Commands that run an experiment."""

import dataclasses
import re
from typing import Any

import tyro

from dfkt_jax import methods
from dfkt_jax.cli import flags
from dfkt_jax.errors import UsageError
from dfkt_jax.runs import old_spellings, overrides


def distill(args: list[str]) -> None:
  """`dfkt distill SOURCE [--learner NAME]`."""
  name, args = flags.method_name(
    *("distill", args, methods.SOURCES),
    word="source",
    others={"learner": methods.LEARNERS},
  )
  learner_name, args = flags.option("--learner", args)
  source: Any = methods.find(name, methods.SOURCES, "source")()
  from dfkt_jax.commands.distill import Distill
  from dfkt_jax.distillation.kd import KD
  from dfkt_jax.distillation.recipe import Recipe

  learner = _paper_learner(source, KD())
  if learner_name is not None:
    chosen = methods.find(learner_name, methods.LEARNERS, "learner")
    # The paper's learner keeps the paper's settings.
    learner = learner if type(learner) is chosen else chosen()
  recipe = _paper_recipe(source, Recipe())
  command = _command_flags(Distill, recipe)
  about = f"learner {type(learner).__name__}"
  flags.check_names(about, learner, command)
  flags.check_names(
    f"source {type(source).__name__}", source, [*command, (about, learner)]
  )
  default = Distill(
    source=source,
    learner=learner,
    recipe=recipe,
    teacher=tyro.MISSING,
    student=tyro.MISSING,
  )
  kind = Distill[type(source), type(learner)]
  choice = flags.Choice(
    name="learner",
    value=learner_name or _learner_name(learner),
    known=(*methods.LEARNERS, "path/to/file.py:ClassName"),
    text="how the student learns; it decides which other flags there are",
  )
  _carry_out(f"distill {name}", kind, default, args, choice)


def synthesize(args: list[str]) -> None:
  """`dfkt synthesize METHOD`."""
  name, args = flags.method_name("synthesize", args, methods.SYNTHESIZERS)
  method: Any = methods.find(name, methods.SYNTHESIZERS, "synthesizer")()
  from dfkt_jax.commands.synthesize import Synthesize

  flags.check_names(_about(method), method, _command_flags(Synthesize))
  default = Synthesize(method=method, teacher=tyro.MISSING)
  _carry_out(f"synthesize {name}", Synthesize[type(method)], default, args)


def adapt(args: list[str]) -> None:
  """`dfkt adapt METHOD`."""
  name, args = flags.method_name("adapt", args, methods.ADAPTERS)
  method: Any = methods.find(name, methods.ADAPTERS, "adapter")()
  from dfkt_jax.adaptation.recipe import Recipe
  from dfkt_jax.commands.adapt import Adapt

  recipe = _paper_recipe(method, Recipe())
  flags.check_names(_about(method), method, _command_flags(Adapt, recipe))
  default = Adapt(
    method=method, recipe=recipe, source=tyro.MISSING, target=tyro.MISSING
  )
  _carry_out(f"adapt {name}", Adapt[type(method)], default, args)


def train(args: list[str]) -> None:
  """`dfkt teacher train`."""
  from dfkt_jax.commands.train import TrainTeacher
  from dfkt_jax.distillation.supervised import RECIPES

  name, args = flags.option("--recipe", args)
  name = name or "supervised"
  if name not in RECIPES:
    raise UsageError(
      f"--recipe {name} is unknown: expected one of {', '.join(RECIPES)}"
    )
  default = TrainTeacher(
    recipe=RECIPES[name], arch=tyro.MISSING, dataset=tyro.MISSING
  )
  # --out as in 'teacher import': the workdir stands for the network in it.
  args = [re.sub(r"^--out(?=$|=)", "--workdir", arg) for arg in args]
  choice = flags.Choice(
    name="recipe",
    value=name,
    known=RECIPES,
    text="the defaults of the training's flags",
  )
  _carry_out("teacher train", TrainTeacher, default, args, choice)


def run(args: list[str]) -> None:
  """`dfkt run MODULE[:NAME]`."""
  from dfkt_jax.commands import experiments
  from dfkt_jax.commands.experiments import RunExperiment
  from dfkt_jax.commands.show import show_rows

  if args[:1] in (["-h"], ["--help"]):
    flags.parse(RunExperiment, "run MODULE[:NAME]", args)
  if not args or args[0].startswith("-"):
    raise UsageError(
      "dfkt run needs MODULE[:NAME] first, such as"
      " experiments/digits.py:dfq; --list shows a module's experiments"
    )
  text, args = args[0], args[1:]
  if "--list" in args:
    found = experiments.find(experiments.split(text)[0])
    show_rows((name, type(value).__name__) for name, value in found.items())
    return
  experiment = experiments.choose(text)
  if "-h" in args or "--help" in args:
    _show_settings(text, experiment)
    return
  args = flags.collect_repeated("--set", args)
  command, others = flags.parse_known(RunExperiment, f"run {text}", args)
  experiment = overrides.with_flags(experiment, others)
  experiment = overrides.replaced(experiment, command.set)
  run_and_show(experiment, command.options)


def _show_settings(text: str, experiment: Any) -> None:
  """Print the flags of `dfkt run` with an experiment."""
  from dfkt_jax.commands.experiments import RunExperiment

  rows = []
  if dataclasses.is_dataclass(experiment):
    rows = overrides.fields(experiment).items()
  flags.print_plain(
    f"Settings of {text}; a name or its last part is a flag or a --set:\n"
  )
  for name, value in rows:
    flags.print_plain(f"  {name} = {value}")
  flags.print_plain("")
  flags.parse(RunExperiment, f"run {text}", ["--help"])


def _about(method: Any) -> str:
  return f"method {type(method).__name__}"


def _paper_recipe(method: Any, default: Any) -> Any:
  from dfkt_jax.contracts import HasRecipe

  return method.recipe if isinstance(method, HasRecipe) else default


def _paper_learner(source: Any, default: Any) -> Any:
  from dfkt_jax.contracts import HasLearner

  return source.learner if isinstance(source, HasLearner) else default


def _learner_name(learner: Any) -> str:
  """Return the name of a learner of ours, or the class of a user's."""
  kind = type(learner)
  path = f"{kind.__module__.partition('.')[2]}:{kind.__name__}"
  known = {entry.path: name for name, entry in methods.LEARNERS.items()}
  return known.get(path, kind.__name__)


def _command_flags(kind: type, *recipes: Any) -> list[tuple[str, Any]]:
  """Return what has flags beside the method, for `flags.check_names`."""
  from dfkt_jax.runs.driver import RunOptions

  return [("the command", part) for part in (kind, *recipes, RunOptions)]


def _carry_out(
  command: str,
  kind: Any,
  default: Any,
  args: list[str],
  choice: flags.Choice | None = None,
) -> None:
  """Fill an experiment and its run options from flags, and run it.

  Args:
    kind: the experiment's type, with its method's type where it has one.
    default: the experiment, with tyro.MISSING for required flags.
    choice: a flag that is read already, which --help shows too.
  """
  from dfkt_jax.runs.driver import RunOptions

  # The names of these two fields are what --help puts above their flags.
  name = command.split()[0]
  parts: list[tuple[str, Any]] = [(name, kind), ("run", RunOptions)]
  if choice is not None:
    parts.append(choice.field())
  both = dataclasses.make_dataclass(kind.__name__, parts, frozen=True)
  both.__doc__ = kind.__doc__
  known = [path.rpartition(".")[2] for path in overrides.fields(default)]
  args = old_spellings.replace_flags(args, known)
  options = RunOptions(workdir=tyro.MISSING)
  values = [default, options, *([choice.value] if choice else [])]
  filled = flags.parse(both, command, args, both(*values))
  run_and_show(vars(filled)[name], filled.run)


def run_and_show(experiment: Any, options: Any) -> None:
  """Run an experiment on all processes and show its result."""
  from dfkt_jax.commands.experiments import SharesOutBatches
  from dfkt_jax.commands.show import show_result
  from dfkt_jax.devices import processes

  processes.initialize(
    independent=isinstance(experiment, SharesOutBatches)
    and experiment.independent
  )
  show_result(experiment.run(options), options.workdir)
