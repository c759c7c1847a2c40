"""CIFAR-10's ResNet-20 from Tiny-ImageNet photographs, minutes on a CPU.

COMMAND  dfkt teacher import resnet20-12fca82f.th --arch resnet20 \
           --preset akamaster-cifar10 --out t20
         dfkt run experiments/openworld.py:odsd --workdir runs/odsd

The pool has 5,000 unlabelled photographs, tiny_imagenet_5000.zip, from which a
method selects 500; the evaluation set is the first 1,000 test images in
cifar10_test1000.npz. The student, a small plain network, sees 51,200 images in
every experiment, with ODSD two views of half that number. In `odsd_full_batch`
it sees two views of 51,200 images, and in `*_double_batch` the other methods
see twice as many. `published_*` are the papers' recipes and need a GPU and a
pool of a million images.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.distill import Distill
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.noise_adaptation import NoiseAdaptation
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.distillation.relations import ContrastiveRelations
from dfkt_jax.openworld.dfnd import DFND
from dfkt_jax.openworld.mosaic import MosaicKD
from dfkt_jax.openworld.odsd import ODSD
from dfkt_jax.openworld.random_selection import RandomSelection

_KD = KD(
  temperature=4.0,
  optimizer="adam",
  lr=2e-3,
  weight_decay=0.0,
  crop_padding=4,
  flip=True,
)


def _run(source, learner, batch_size=64):
  return Distill(
    source=source,
    learner=learner,
    recipe=Recipe(steps=800, batch_size=batch_size, student_steps=10),
    teacher=Path("t20"),
    student="convnet",
    pool="zip:tiny_imagenet_5000.zip",
    num_images=500,
    eval_dataset="npz:cifar10_test1000.npz",
    evaluations=5,
  )


_noise_adaptation = lambda **fields: NoiseAdaptation(kd=_KD, **fields)
_relations = lambda **fields: ContrastiveRelations(kd=_KD, **fields)

random = _run(RandomSelection(), _KD)
random_double_batch = _run(RandomSelection(), _KD, batch_size=128)
dfnd = _run(DFND(), _noise_adaptation())
dfnd_double_batch = _run(DFND(), _noise_adaptation(), batch_size=128)
dfnd_selection_alone = _run(DFND(), _noise_adaptation(noise_weight=0.0))
odsd = _run(ODSD(), _relations(), batch_size=32)
odsd_full_batch = _run(ODSD(), _relations())
odsd_sampling_alone = _run(
  ODSD(), _relations(contrast_weight=0.0, relation_weight=0.0), batch_size=32
)
odsd_without_prototypes = _run(
  ODSD(prototype_sampling=False), _relations(), batch_size=32
)
odsd_without_denoising = _run(ODSD(), _relations(denoise=0.0), batch_size=32)
odsd_without_contrast = _run(
  ODSD(), _relations(contrast_weight=0.0), batch_size=32
)
odsd_without_relation = _run(
  ODSD(), _relations(relation_weight=0.0), batch_size=32
)
# The generator makes half of the images that the student sees.
mosaic_kd = _run(
  MosaicKD(generator_widths=(64, 64, 32), discriminator_widths=(32, 64)),
  _KD,
  batch_size=32,
)

published_dfnd = dataclasses.replace(
  dfnd,
  learner=DFND.learner,
  recipe=DFND.recipe,
  student="resnet20",
  pool="folder:imagenet/train",
  num_images=600_000,
  evaluations=20,
)
published_mosaic_kd = dataclasses.replace(
  mosaic_kd,
  source=MosaicKD(),
  learner=MosaicKD.learner,
  recipe=MosaicKD.recipe,
  student="resnet20",
  pool="folder:imagenet/train",
  num_images=50_000,
  evaluations=20,
)
