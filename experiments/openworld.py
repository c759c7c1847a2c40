"""CIFAR-10's ResNet-20 from Tiny-ImageNet photographs, minutes on a CPU.

COMMAND  dfkt teacher import resnet20-12fca82f.th --arch resnet20 \
           --preset akamaster-cifar10 --out t20
         dfkt run experiments/openworld.py:odsd --workdir runs/odsd

The pool is 5,000 unlabelled photographs, tiny_imagenet_5000.zip, of which a
method chooses 500; the evaluation set is the first 1,000 test images as
cifar10_test1000.npz. The student, a small plain network, sees 51,200 images in
every experiment, ODSD two views of half as many. In `odsd_full_batch` it sees
two views of as many, and in `*_double_batch` the others see twice as many.
`published_*` are the papers' recipes and mean a GPU and a pool of a million.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.openworld import DistillOpenWorld
from dfkt_jax.distillation.kd import KD
from dfkt_jax.openworld.contract import Study
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.odsd import ODSD
from dfkt_jax.openworld.random_selection import RandomSelection

_STUDY = Study(
  kd=KD(
    steps=800,
    temperature=4.0,
    optimizer="adam",
    lr=2e-3,
    weight_decay=0.0,
    crop_padding=4,
    flip=True,
  ),
  student_steps=10,
)


def _run(method, batch_size=64):
  return DistillOpenWorld(
    method=method,
    study=dataclasses.replace(_STUDY, batch_size=batch_size),
    teacher=Path("t20"),
    student="convnet",
    pool="zip:tiny_imagenet_5000.zip",
    num_images=500,
    eval_dataset="npz:cifar10_test1000.npz",
    evaluations=5,
  )


_without = lambda **parts: dataclasses.replace(ODSD(), **parts)

random = _run(RandomSelection())
random_double_batch = _run(RandomSelection(), batch_size=128)
dfnd = _run(DFND())
dfnd_double_batch = _run(DFND(), batch_size=128)
dfnd_selection_alone = _run(DFND(noise_weight=0.0))
odsd = _run(ODSD(), batch_size=32)
odsd_full_batch = _run(ODSD())
odsd_sampling_alone = _run(
  _without(contrast_weight=0.0, relation_weight=0.0), batch_size=32
)
odsd_without_prototypes = _run(
  _without(prototype_sampling=False), batch_size=32
)
odsd_without_denoising = _run(_without(denoise=0.0), batch_size=32)
odsd_without_contrast = _run(_without(contrast_weight=0.0), batch_size=32)
odsd_without_relation = _run(_without(relation_weight=0.0), batch_size=32)
# Half of what its student sees is made by the generator.
mosaic_kd = _run(
  MosaicKD(generator_widths=(64, 64, 32), discriminator_widths=(32, 64)),
  batch_size=32,
)

published_dfnd = dataclasses.replace(
  dfnd,
  study=DFND.study,
  student="resnet20",
  pool="folder:imagenet/train",
  num_images=600_000,
  evaluations=20,
)
published_mosaic_kd = dataclasses.replace(
  mosaic_kd,
  method=MosaicKD(),
  study=MosaicKD.study,
  student="resnet20",
  pool="folder:imagenet/train",
  num_images=50_000,
  evaluations=20,
)
