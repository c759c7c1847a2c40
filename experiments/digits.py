"""The comparison of `dfkt quickstart`, one experiment a row, for sweeps.

COMMAND  dfkt teacher train --arch convnet --dataset digits/train \
           --eval-dataset digits/test --out runs/teacher --steps 400 \
           --batch-size 128 --crop-padding 1 --flip False
         dfkt run experiments/digits.py:dfq --workdir runs/dfq
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands import quickstart
from dfkt_jax.commands.distill import Distill
from dfkt_jax.synthesis.noise import Noise

dfq = Distill(
  source=quickstart.SOURCE,
  learner=quickstart.LEARNER,
  recipe=quickstart.RECIPE,
  teacher=Path("runs/teacher/network"),
  student=quickstart.STUDENT,
  eval_dataset=quickstart.HELD_OUT,
)
dfq_seed1 = dataclasses.replace(dfq, seed=1)
dfq_seed2 = dataclasses.replace(dfq, seed=2)
noise = dataclasses.replace(dfq, source=Noise())
