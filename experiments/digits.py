"""Quickstart's comparison, one experiment a row, for sweeps over seeds.

COMMAND  dfkt teacher train --arch convnet --dataset digits/train \
           --eval-dataset digits/test --out runs/teacher --steps 400 \
           --batch-size 128 --crop-padding 1 --flip False
         dfkt run experiments/digits.py:dfq --workdir runs/dfq
"""

import dataclasses
from pathlib import Path

from dfkt_jax import quickstart
from dfkt_jax.commands.distill import Distill
from dfkt_jax.synthesis.noise import Noise

dfq = Distill(
  method=quickstart.METHOD,
  transfer=quickstart.TRANSFER,
  teacher=Path("runs/teacher/network"),
  student=quickstart.STUDENT,
  eval_dataset=quickstart.HELD_OUT,
)
dfq_seed1 = dataclasses.replace(dfq, seed=1)
dfq_seed2 = dataclasses.replace(dfq, seed=2)
noise = dataclasses.replace(dfq, method=Noise())
