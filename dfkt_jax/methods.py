"""Methods by name, with their papers; each is imported when it is asked for."""

import ast
from collections.abc import Mapping
import dataclasses
import difflib
import importlib.util
from pathlib import Path
import pkgutil

from dfkt_jax import user_modules
from dfkt_jax.errors import UsageError
from dfkt_jax.user_modules import Kind


@dataclasses.dataclass(frozen=True)
class Entry:
  """The place and the paper of a method."""

  path: str  # MODULE:CLASS, relative to dfkt_jax
  paper: str = ""  # authors, title, venue and year; "": it is a baseline

  def load(self) -> type:
    """Import the class."""
    return pkgutil.resolve_name(f"dfkt_jax.{self.path}")

  def title(self) -> str:
    """Return the first line of the module's docstring without importing it."""
    module = f"dfkt_jax.{self.path.partition(':')[0]}"
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text()))
    return (text or "").split("\n")[0]


SYNTHESIZERS: Mapping[str, Entry] = {
  "deep-inversion": Entry(
    "synthesis.deep_inversion:DeepInversion",
    "Yin et al., Dreaming to Distill: Data-free Knowledge Transfer via"
    " DeepInversion, CVPR 2020",
  ),
  "dfq": Entry(
    "synthesis.dfq:DFQ",
    "Choi et al., Data-Free Network Quantization With Adversarial Knowledge"
    " Distillation, CVPR Workshops 2020",
  ),
  "noise": Entry("synthesis.noise:Noise"),
  "soft-target": Entry(
    "synthesis.soft_target:SoftTarget",
    "Wang, Data-Free Knowledge Distillation with Soft Targeted Transfer Set"
    " Synthesis, AAAI 2021",
  ),
  "zskd": Entry(
    "synthesis.zskd:ZSKD",
    "Nayak et al., Zero-Shot Knowledge Distillation in Deep Networks, ICML"
    " 2019",
  ),
}

_DFND = "Chen et al., Learning Student Networks in the Wild, CVPR 2021"
_ODSD = (
  "Wang et al., Sampling to Distill: Knowledge Transfer from Open-World Data,"
  " ECCV 2024"
)
_HINTON = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"

SELECTORS: Mapping[str, Entry] = {
  "dfnd": Entry("openworld.dfnd:DFND", _DFND),
  "mosaic-kd": Entry(
    "openworld.mosaic:MosaicKD",
    "Fang et al., Mosaicking to Distill: Knowledge Distillation from"
    " Out-of-Domain Data, NeurIPS 2021",
  ),
  "odsd": Entry("openworld.odsd:ODSD", _ODSD),
  "random": Entry("openworld.random_selection:RandomSelection"),
}

# Sources whose images are there already.
STORED: Mapping[str, Entry] = {
  "offline": Entry("distillation.offline:Offline", _HINTON),
}

SOURCES: Mapping[str, Entry] = {**SYNTHESIZERS, **SELECTORS, **STORED}

LEARNERS: Mapping[str, Entry] = {
  "kd": Entry("distillation.kd:KD", _HINTON),
  "dfnd": Entry("distillation.noise_adaptation:NoiseAdaptation", _DFND),
  "odsd": Entry("distillation.relations:ContrastiveRelations", _ODSD),
}

ADAPTERS: Mapping[str, Entry] = {
  "3c-gan": Entry(
    "adaptation.gan_3c:GAN3C",
    "Li et al., Model Adaptation: Unsupervised Domain Adaptation without"
    " Source Data, CVPR 2020",
  ),
  "aad": Entry(
    "adaptation.aad:AaD",
    "Yang et al., Attracting and Dispersing: A Simple Approach for Source-free"
    " Domain Adaptation, NeurIPS 2022",
  ),
  "ada-bn": Entry(
    "adaptation.ada_bn:AdaBN",
    "Li et al., Revisiting Batch Normalization For Practical Domain"
    " Adaptation, 2016",
  ),
  "ada-contrast": Entry(
    "adaptation.ada_contrast:AdaContrast",
    "Chen et al., Contrastive Test-Time Adaptation, CVPR 2022",
  ),
  "cowa": Entry(
    "adaptation.cowa:CoWA",
    "Lee et al., Confidence Score for Source-Free Unsupervised Domain"
    " Adaptation, ICML 2022",
  ),
  "cpga": Entry(
    "adaptation.cpga:CPGA",
    "Qiu et al., Source-free Domain Adaptation via Avatar Prototype Generation"
    " and Adaptation, IJCAI 2021",
  ),
  "dine": Entry(
    "adaptation.dine:DINE",
    "Liang et al., DINE: Domain Adaptation from Single and Multiple Black-box"
    " Predictors, CVPR 2022",
  ),
  "notela": Entry(
    "adaptation.notela:NOTELA",
    "Boudiaf et al., In Search for a Generalizable Method for Source Free"
    " Domain Adaptation, ICML 2023",
  ),
  "nrc": Entry(
    "adaptation.nrc:NRC",
    "Yang et al., Exploiting the Intrinsic Neighborhood Structure for"
    " Source-free Domain Adaptation, NeurIPS 2021",
  ),
  "sfda-de": Entry(
    "adaptation.sfda_de:SFDADE",
    "Ding et al., Source-Free Domain Adaptation via Distribution Estimation,"
    " CVPR 2022",
  ),
  "sfit": Entry(
    "adaptation.sfit:SFIT",
    "Hou and Zheng, Visualizing Adapted Knowledge in Domain Transfer, CVPR"
    " 2021",
  ),
  "shot": Entry(
    "adaptation.shot:SHOT",
    "Liang et al., Do We Really Need to Access the Source Data?, ICML 2020",
  ),
  "shot++": Entry(
    "adaptation.shot_plus_plus:SHOTPlusPlus",
    "Liang et al., Source Data-absent Unsupervised Domain Adaptation through"
    " Hypothesis Transfer and Labeling Transfer, TPAMI 2021",
  ),
  "tent": Entry(
    "adaptation.tent:Tent",
    "Wang et al., Tent: Fully Test-time Adaptation by Entropy Minimization,"
    " ICLR 2021",
  ),
}


def find(name: str, known: Mapping[str, Entry], kind: Kind) -> type:
  """Return the class of a name in `known`, or of path/to/file.py:ClassName.

  Args:
    kind: the contract that a user's class has to meet.

  Raises:
    UsageError: the name is unknown, or the user's class does not meet the
      contract.
  """
  plain = name.lower().replace("_", "-")
  if plain in known:
    return known[plain].load()
  if ":" in name:
    return user_modules.load_method(name, kind)
  word = user_modules.KIND_WORDS[kind]
  close = difflib.get_close_matches(plain, known, n=1)
  hint = f"did you mean {close[0]}? " if close else ""
  raise UsageError(
    f"{word} {name!r} is unknown; {hint}expected one of"
    f" {', '.join(known)} or path/to/file.py:ClassName"
  )
