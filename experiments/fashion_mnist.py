"""Fashion-MNIST, LeNet-5 to LeNet-5-half, without a single image of clothes.

COMMAND  dfkt teacher train --dataset fashion_mnist --arch lenet5 \
           --steps 9000 --batch-size 128 --optimizer adam --lr 2e-3 \
           --weight-decay 0 --crop-padding 2 --flip True --workdir teacher
         dfkt run experiments/fashion_mnist.py:soft_target --workdir runs/0

The files are Debian's `dataset-fashion-mnist`. Rows of the table in
docs/results.md have the names of this file, with `--seed 0`, `1`, `2`.
`*_paper` fit noise to soft labels with no image prior, as published, and
`published_*` at the published size, hours on a CPU; the rest begin at shapes.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.distill import Distill
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.transfer import Transfer
from dfkt_jax.synthesis.noise import Noise
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD

_TRANSFER = Transfer(
  kd=KD(
    steps=6000,
    optimizer="adam",
    lr=2e-3,
    weight_decay=0.0,
    temperature=4.0,
    mix=0.5,
  ),
  batch_size=128,
  synthesis_steps=30,
  student_steps=500,
  pool_size=8000,
  offline=True,
)

_SHAPES = TargetFitting(
  image_lr=0.05,
  target_temperature=4.0,
  tv_weight=0.02,
  sum_weight=0.005,
  start="shapes",
  candidates=100,
)


def _run(method, **transfer):
  return Distill(
    method=method,
    transfer=dataclasses.replace(_TRANSFER, **transfer),
    teacher=Path("teacher"),
    student="lenet5-half",
    eval_dataset="fashion_mnist/test",
    evaluations=4,
  )


def _ours(fitting=_SHAPES, sigma=4.0, **transfer):
  method = SoftTarget(synthesis_batch_size=200, sigma=sigma, fitting=fitting)
  return _run(method, **transfer)


def _fitted(**changes):
  return _ours(dataclasses.replace(_SHAPES, **changes))


def _student(**changes):
  return _ours(kd=dataclasses.replace(_TRANSFER.kd, **changes))


soft_target = _ours()
zskd = _run(ZSKD(synthesis_batch_size=200, fitting=_SHAPES))
prior_alone = _fitted(candidates=1, image_lr=0.0)
noise = _run(Noise(), pool_size=0, offline=False)

# The papers' form: noise, their learning rate and activation loss, no prior.
_as_published = {"synthesis_steps": 200}
soft_target_paper = _run(
  SoftTarget(
    synthesis_batch_size=200,
    fitting=TargetFitting(activation_weight=0.05),
  ),
  **_as_published,
)
zskd_paper = _run(ZSKD(synthesis_batch_size=200), **_as_published)

# Ablations, one change each.
images_2000 = _ours(pool_size=2000)
images_4000 = _ours(pool_size=4000)
images_16000 = _ours(pool_size=16_000)
selected_only = _fitted(image_lr=0.0)
steps_100 = _ours(synthesis_steps=100)
one_candidate = _fitted(candidates=1)
ten_candidates = _fitted(candidates=10)
dark_start = _ours(
  dataclasses.replace(_SHAPES, start="noise", start_level=0.05),
  synthesis_steps=200,
)
no_augmentation = _student(mix=0.0)
turned_and_shrunk = _student(rotation=30.0, shrink=0.4, noise=0.1)
stored_targets = _student(mix=0.0, target="stored")
l1_logits = _student(loss="l1")
sigma_1_5 = _ours(sigma=1.5)
sigma_8 = _ours(sigma=8.0)

published_soft_target = dataclasses.replace(
  soft_target_paper, method=SoftTarget(), transfer=SoftTarget.transfer
)
published_zskd = dataclasses.replace(
  zskd_paper, method=ZSKD(), transfer=ZSKD.transfer
)
