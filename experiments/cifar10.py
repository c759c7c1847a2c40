"""CIFAR-10: teachers of akamaster/pytorch_resnet_cifar10, ResNet-20 students.

COMMAND  dfkt teacher import resnet20-12fca82f.th --arch resnet20 \
           --preset akamaster-cifar10 --out t20
         dfkt run experiments/cifar10.py:dfq_five_minutes --workdir runs/five

`dfq` and `deep_inversion` are the published recipes, intended for a GPU;
`dfq_five_minutes` takes about that long on two CPU cores. The evaluation set is
the first 1,000 test images in cifar10_test1000.npz.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.distill import Distill
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.synthesis.deep_inversion import DeepInversion
from dfkt_jax.synthesis.dfq import DFQ

dfq = Distill(
  source=DFQ(),
  learner=DFQ.learner,
  recipe=DFQ.recipe,
  teacher=Path("t20"),
  student="resnet20",
  eval_dataset="npz:cifar10_test1000.npz",
)

deep_inversion = dataclasses.replace(
  dfq,
  source=DeepInversion(),
  learner=DeepInversion.learner,
  recipe=DeepInversion.recipe,
)

dfq_five_minutes = dataclasses.replace(
  dfq,
  source=DFQ(
    synthesis_batch_size=64,
    generator_widths=(128, 128, 64),
    generator_lr=2e-3,
    bn_weight=5.0,
  ),
  learner=KD(loss="l1", optimizer="adam", lr=2e-3, weight_decay=0.0),
  recipe=Recipe(steps=400, batch_size=64, synthesis_steps=2, student_steps=4),
  evaluations=10,
)
