"""`dfkt quickstart`: the whole way on real digits, in about two minutes.

1. A BatchNorm teacher learns scikit-learn's 8x8 digits (500 are held out).
2. The data is put away: the student gets the teacher's directory and no other
   input. `dfq` distils it; evaluation alone reads the held-out digits.
3. Baselines of the same student: trained with the data, and distilled on noise.

Each part is a run with a workdir of its own, so a killed quickstart resumes.
"""

from pathlib import Path

from dfkt_jax import files
from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.train import TrainTeacher
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.supervised import Supervised
from dfkt_jax.report.page import report
from dfkt_jax.runs.driver import RunOptions
from dfkt_jax.synthesis.dfq import DFQ
from dfkt_jax.synthesis.noise import Noise

TEACHER, STUDENT = "convnet", "convnet-half"
TRAIN, HELD_OUT = "digits/train", "digits/test"

# Crops by one pixel: digits are 8 pixels wide, and their mirror images are not
# digits.
SUPERVISED = Supervised(
  steps=400, batch_size=128, lr=0.1, crop_padding=1, flip=False
)
SOURCE = DFQ(
  synthesis_batch_size=128,
  latent=64,
  generator_widths=(64, 64, 32),
  bn_weight=5.0,
)
LEARNER = KD(loss="l1", lr=0.1)
RECIPE = Recipe(steps=4000, batch_size=128, synthesis_steps=1, student_steps=5)


def run(workdir: Path, seed: int) -> tuple[list[dict], Path]:
  """Run all parts; return the comparison, one row a network, and the report."""
  # Steps on 8x8 images are too short to be shared out on a CPU.
  options = lambda name: RunOptions(workdir / name, mesh="data=1")
  with_data = lambda arch: TrainTeacher(
    SUPERVISED, arch, TRAIN, HELD_OUT, seed=seed
  )
  teacher_dir = workdir / "teacher" / "network"
  distilled = lambda source: Distill(
    source,
    LEARNER,
    RECIPE,
    teacher_dir,
    STUDENT,
    eval_dataset=HELD_OUT,
    seed=seed,
  )

  teacher = with_data(TEACHER).run(options("teacher"))
  free = distilled(SOURCE).run(options("data-free"))
  student = with_data(STUDENT).run(options("student-with-data"))
  noise = distilled(Noise()).run(options("noise"))

  row = lambda name, images, result, parameters: {
    "network": name,
    "learnt from": images,
    "parameters": result[parameters],
    "accuracy": result["accuracy_last"],
    "seconds": result["wall_seconds"],
  }
  table = [
    row("teacher", "1,297 real digits", teacher, "parameters"),
    row("student", "1,297 real digits", student, "parameters"),
    row("student", "the teacher alone", free, "student_parameters"),
    row("student", "teacher on noise", noise, "student_parameters"),
  ]
  files.write_json(
    workdir / "data-free" / "result.json", {**free, "table": table}
  )
  page = report([workdir / "data-free"], workdir / "report.html")
  return table, page
