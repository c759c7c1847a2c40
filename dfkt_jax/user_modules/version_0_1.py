"""Names of version 0.1 in a user's file: what they are called now."""

import ast
from collections.abc import Iterator
import linecache
import re
import traceback
from types import ModuleType

# Modules, relative to dfkt_jax, and where to import from now.
OLD_MODULES = {
  "adaptation.answers": "rounds.target_predictions",
  "adaptation.banks": "memory.feature_bank",
  "adaptation.contract": "contracts",
  "adaptation.course": "adaptation.recipe",
  "adaptation.diagnostics": "evaluation.diagnostics",
  "checkpoint": "runs.checkpoints",
  "cli_methods": "cli.experiments",
  "commands.batches": "commands.synthesis_plan",
  "commands.checks": "runs.checks",
  "commands.embedding": "evaluation.embedding",
  "commands.evaluation": "evaluation.evaluator",
  "commands.offline": "commands.distill",
  "commands.openworld": "commands.distill",
  "commands.overrides": "runs.overrides",
  "commands.rehearsal": "commands.experiment_programs",
  "commands.summary": "runs.result",
  "commands.synthesize_apart": "commands.independent_batches",
  "compilation": "devices.compilation_cache",
  "data.parts": "data.chunked",
  "distillation.pool": "memory.replay_buffer",
  "distillation.transfer": "distillation.recipe",
  "distillation.transfer_set": "data.transfer_set",
  "driver": "runs.driver",
  "evaluate": "evaluation.evaluator",
  "exits": "cli.exits",
  "flags": "cli.flags",
  "large_pages": "devices.huge_pages",
  "local_checkpoint": "runs.local_checkpoints",
  "loops": "devices.loops",
  "metrics": "runs.metrics",
  "openworld.contract": "contracts",
  "openworld.round": "rounds.distil",
  "openworld.scoring": "evaluation.pool_scores",
  "openworld.selection": "data.selection",
  "parallel": "devices.sharding, devices.mesh or devices.processes",
  "placement": "network.placement",
  "progress": "runs.progress",
  "quickstart": "commands.quickstart",
  "report_figures": "report.figures",
  "report_html": "report.html",
  "report_plots": "report.plots",
  "report_runs": "report.runs",
  "synthesis.arithmetic": "network.precision",
  "synthesis.contract": "contracts",
  "synthesis.pixel_stages": "synthesis.deep_inversion",
  "tails": "network.layers",
  "workdir": "runs.workdir",
}

# Classes and functions, and what they are called now; relative to dfkt_jax.
OLD_NAMES = {
  "adaptation.ada_bn.drift": "network.drift.batch_norm_drift",
  "adaptation.answers.Look": "rounds.target_predictions.PredictAll",
  "adaptation.answers.make_look": (
    "rounds.target_predictions.make_predict_all"
  ),
  "adaptation.contract.Answers": "contracts.Predictions",
  "adaptation.course.Course": "adaptation.recipe.Recipe",
  "adaptation.course.Learner": "adaptation.recipe.TrainState",
  "adaptation.diagnostics.complaints": "evaluation.diagnostics.warnings",
  "adaptation.dine.divergence": "losses.classification.kl_from_probabilities",
  "adaptation.shot_plus_plus.Mixing": "adaptation.mixmatch.Loss",
  "adaptation.shot_plus_plus.split": "adaptation.mixmatch.split",
  "commands.checks.check_numbers": "runs.checks.check",
  "commands.evaluation.Evaluation": "evaluation.evaluator.Evaluator",
  "commands.evaluation.load": "evaluation.evaluator.load_evaluation_set",
  "commands.offline.DistillOffline": "commands.distill.Distill",
  "commands.openworld.DistillOpenWorld": "commands.distill.Distill",
  "compilation.keep_on_disk": "devices.compilation_cache.enable",
  "data.dataset.NoImage": "data.dataset.NotAnImage",
  "data.dataset.fit": "data.dataset.resize",
  "data.dataset.fit_images": "data.dataset.resize_images",
  "data.fit": "data.resize",
  "data.image_files.fit": "data.image_files.resize_and_crop",
  "data.parts.Names": "data.chunked.ChunkedNames",
  "data.parts.Parts": "data.chunked.ChunkedArray",
  "data.parts.save": "data.chunked.save_npy",
  "distillation.pool.Pool": "memory.replay_buffer.ReplayBuffer",
  "distillation.transfer.State": "rounds.distil.State",
  "distillation.transfer.Transfer": "distillation.recipe.Recipe",
  "distillation.transfer.images_per_step": "rounds.distil.images_per_step",
  "distillation.transfer.init": "rounds.distil.init",
  "distillation.transfer.make_round": "rounds.distil.make_round",
  "distillation.transfer.preview": "rounds.distil.preview",
  "distillation.transfer.stream": "rounds.distil.stream_key",
  "driver.Pace": "runs.driver.Throughput",
  "evaluate.open_set_score": "evaluation.scores.open_set_score",
  "evaluate.score": "network.scores.score",
  "evaluate.share": "network.scores.share",
  "large_pages.begin_again": "devices.huge_pages.restart_process",
  "loops.choose": "devices.loops.select",
  "loops.over": "devices.loops.scan",
  "loops.when": "devices.loops.cond",
  "losses.contrastive.choose": "losses.contrastive.choose_keys",
  "losses.information.NEVER": "losses.reduce.LOG_ZERO",
  "losses.information.entropies": "losses.information.entropy",
  "losses.information.information_maximisation": (
    "losses.information.information_maximization"
  ),
  "losses.information.mean": "losses.reduce.mean",
  "losses.relation.normalise": "losses.relation.normalize",
  "losses.vat.Answer": "losses.vat.Predict",
  "methods.load_module": "user_modules.load_module",
  "openworld.contract.OpenWorld": "contracts.Selector",
  "openworld.contract.Study": "distillation.recipe.Recipe",
  "openworld.prototypes.Placement": "openworld.prototypes.Assignment",
  "openworld.prototypes.place": "openworld.prototypes.assign",
  "openworld.scoring.Scores": "contracts.Scores",
  "openworld.scoring.score": "evaluation.pool_scores.score_pool",
  "openworld.selection.Selection": "contracts.Selection",
  "parallel.gather": "devices.processes.gather",
  "parallel.local": "devices.mesh.local_mesh",
  "parallel.make_mesh": "devices.mesh.make_mesh",
  "parallel.mesh_over": "devices.mesh.mesh_of",
  "parallel.named_mesh": "devices.mesh.parse_mesh",
  "parallel.of_first_process": "devices.processes.broadcast",
  "parallel.place": "devices.processes.process_rank",
  "parallel.processors": "devices.mesh.cpu_count",
  "parallel.split": "devices.sharding.shard",
  "parallel.start": "devices.processes.initialize",
  "parallel.wait": "devices.processes.barrier",
  "parallel.whole": "devices.sharding.replicate",
  "placement.outline": "network.placement.abstract",
  "placement.place": "network.placement.put",
  "placement.specification": "network.placement.partition_spec",
  "quickstart.METHOD": "commands.quickstart.SOURCE",
  "quickstart.TRANSFER": "commands.quickstart.RECIPE",
  "report.report": "report.page.report",
  "synthesis.arithmetic.arranged": "network.precision.with_precision",
  "synthesis.contract.stages": "contracts.step_functions",
  "synthesis.pixel_stages.State": "synthesis.deep_inversion.State",
  "tails.from_input": "network.layers.logits_from_input",
  "tails.from_output": "network.layers.logits_from_output",
  "tails.layers": "network.layers.list_layers",
}

_DISTILL = "Distill now takes source=, learner= and recipe="
_OFFLINE = (
  "Distill now takes the settings of Offline as learner=, such as KD(...), and"
  " recipe="
)
_NOISE = "it is now a setting of Distill's learner=, a NoiseAdaptation"
_RELATIONS = "it is now a setting of Distill's learner=, a ContrastiveRelations"
_TASK = "InputSpec now takes task=, such as Classification(classes)"

# Fields of classes that are there still, and a sentence about each.
OLD_FIELDS = {
  ("Distill", "method"): _DISTILL,
  ("Distill", "transfer"): _DISTILL,
  ("Distill", "study"): _DISTILL,
  ("Adapt", "course"): (
    "Adapt now takes recipe=, a dfkt_jax.adaptation.recipe.Recipe"
  ),
  ("KD", "steps"): "they are now the steps of Distill's recipe=, a Recipe",
  ("Recipe", "kd"): "it is now Distill's learner=, such as KD(...)",
  ("Recipe", "pool_size"): "Recipe now has memory_size=",
  ("Offline", "kd"): _OFFLINE,
  ("Offline", "batch_size"): _OFFLINE,
  ("DFND", "noise_weight"): _NOISE,
  ("DFND", "assumed_accuracy"): _NOISE,
  ("DFND", "noise_lr"): _NOISE,
  ("ODSD", "denoise"): _RELATIONS,
  ("ODSD", "prototype_temperature"): _RELATIONS,
  ("ODSD", "contrast_weight"): _RELATIONS,
  ("ODSD", "contrast_temperature"): _RELATIONS,
  ("ODSD", "relation_weight"): _RELATIONS,
  ("ODSD", "angle_ratio"): _RELATIONS,
  ("ODSD", "angle_images"): _RELATIONS,
  ("InputSpec", "classes"): _TASK,
  ("InputSpec", "class_names"): _TASK,
}

# Class variables of methods.
_OLD_RECIPES = {
  "transfer": "its steps are now {0}.recipe and its KD is {0}.learner",
  "study": "its steps are now {0}.recipe and its KD is {0}.learner",
  "course": "it is now {0}.recipe",
}


def describe_failure(error: Exception, advice: str = "correct the file") -> str:
  """Return why an import failed, and what to do about it.

  Args:
    advice: for all but names of version 0.1, whose new names are given.
  """
  text = f"{type(error).__name__}: {error}"
  hint = None
  if isinstance(error, ImportError):
    hint = _explain_import(error)
  elif isinstance(error, AttributeError):
    hint = _explain_attribute(error)
  elif isinstance(error, TypeError):
    hint = _explain_argument(error)
  return f"{text}; {hint or advice}"


def _explain_import(error: ImportError) -> str | None:
  """Return what to import instead of a module or a name of version 0.1."""
  module = error.name or ""
  names = list(_imported_names(error, module))
  if not isinstance(error, ModuleNotFoundError):
    # from dfkt_jax import loops: the name is only in the text.
    last = re.search(r"cannot import name '(\w+)'", str(error))
    names = [last[1]] if last else []
    if names and f"{module}.{names[0]}".partition(".")[2] in OLD_MODULES:
      module, names = f"{module}.{names[0]}", []
  ours, _, module = module.partition(".")
  if ours != "dfkt_jax":
    return None
  renamed = [name for name in names if f"{module}.{name}" in OLD_NAMES]
  hints = [_explain_name(f"{module}.{name}") for name in renamed]
  if module in OLD_MODULES and (len(renamed) < len(names) or not names):
    hints.insert(0, _explain_module(module))
  return "; ".join(hints) or None


def _explain_module(old: str) -> str:
  return (
    f"dfkt_jax.{old} is of version 0.1: import from"
    f" dfkt_jax.{OLD_MODULES[old]} instead"
  )


def _explain_name(old: str) -> str:
  return f"dfkt_jax.{old} of version 0.1 is now dfkt_jax.{OLD_NAMES[old]}"


def _imported_names(error: ImportError, module: str) -> Iterator[str]:
  """Yield what the failing statement imports from a module by name."""
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    linecache.checkcache(frame.filename)
    lines = linecache.getlines(frame.filename)
    if not lines or frame.lineno is None:
      continue
    for node in ast.walk(ast.parse("".join(lines))):
      if (
        isinstance(node, ast.ImportFrom)
        and node.module == module
        and node.lineno == frame.lineno
      ):
        yield from (alias.name for alias in node.names)
    return


def _explain_attribute(error: AttributeError) -> str | None:
  """Return what an attribute of version 0.1 is now."""
  owner, name = error.obj, error.name or ""
  if isinstance(owner, ModuleType):
    ours, _, old = f"{owner.__name__}.{name}".partition(".")
    if ours != "dfkt_jax":
      return None
    if old in OLD_MODULES:
      return _explain_module(old)
    return _explain_name(old) if old in OLD_NAMES else None
  kind = owner if isinstance(owner, type) else type(owner)
  if not kind.__module__.startswith("dfkt_jax."):
    return None
  return _explain_field(kind.__name__, name)


def _explain_argument(error: TypeError) -> str | None:
  """Return what a keyword argument of version 0.1 is now."""
  found = re.search(
    r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
    str(error),
  )
  return _explain_field(*found.groups()) if found else None


def _explain_field(kind: str, name: str) -> str | None:
  hint = OLD_FIELDS.get((kind, name))
  if hint is None and name in _OLD_RECIPES:
    hint = _OLD_RECIPES[name].format(kind)
  return f"{kind}.{name} is of version 0.1: {hint}" if hint else None
