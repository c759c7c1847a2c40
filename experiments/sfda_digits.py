"""Printed digits to handwritten ones, in under three minutes on two CPU cores.

COMMAND  dfkt run experiments/sfda_digits.py --workdir runs/sfda

A source network learns digits drawn with matplotlib's fonts. Then, without
those, SHOT and AaD adapt it to scikit-learn's handwritten digits without their
labels. WORKDIR/report.html compares both with source-only, and shows the target
in the feature space before and after.
"""

import dataclasses

from dfkt_jax import files
from dfkt_jax.adaptation.aad import AaD
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.commands.adapt import Adapt
from dfkt_jax.commands.train import TrainTeacher
from dfkt_jax.distillation.supervised import SFDA
from dfkt_jax.report.page import report
from dfkt_jax.runs.driver import RunOptions

_SOURCE = TrainTeacher(
  recipe=dataclasses.replace(
    SFDA, steps=1000, backbone_rate=1.0, crop_padding=1
  ),
  arch="convnet+bottleneck",
  dataset="fonts/train",
  eval_dataset="fonts/test",
)
_RECIPE = dataclasses.replace(
  SHOT.recipe, epochs=15, backbone_rate=1.0, crop_padding=1
)
_METHODS = {
  "shot": (SHOT(label_weight=0.1), _RECIPE),
  "aad": (
    AaD(dispersion_decay=0.0),
    dataclasses.replace(_RECIPE, lr=0.005, classifier_rate=1.0),
  ),
}


@dataclasses.dataclass(frozen=True)
class SFDADigits:
  """All parts, each a run with its own workdir, which resumes."""

  seed: int = 0

  def run(self, options: RunOptions) -> dict:
    """Run all parts; return the accuracies and the path of the report."""
    part = lambda name: dataclasses.replace(
      options, workdir=options.workdir / name
    )
    source = dataclasses.replace(_SOURCE, seed=self.seed).run(part("source"))
    results = {
      name: Adapt(
        method=method,
        recipe=recipe,
        source=options.workdir / "source" / "network",
        target="digits/train",
        eval_dataset="digits/test",
        seed=self.seed,
        pool_cache=options.workdir / "pool",
      ).run(part(name))
      for name, (method, recipe) in _METHODS.items()
    }
    shot = results["shot"]
    row = lambda name, accuracy, seconds: {
      "network": name,
      "handwritten digits, accuracy": accuracy,
      "seconds": seconds,
    }
    table = [
      row("source-only", shot["source_accuracy"], source["wall_seconds"]),
      *(
        row(name, result["accuracy_last"], result["wall_seconds"])
        for name, result in results.items()
      ),
    ]
    files.write_json(
      options.workdir / "shot" / "result.json", {**shot, "table": table}
    )
    places = [options.workdir / name for name in results]
    page = report(places, options.workdir / "report.html")
    return {
      "source_accuracy": shot["source_accuracy"],
      **{
        f"{name}_accuracy": result["accuracy_last"]
        for name, result in results.items()
      },
      "report": str(page),
    }


sfda_digits = SFDADigits()
