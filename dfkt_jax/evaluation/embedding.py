"""Maps of the target in the feature spaces of source and adapted network.

Two t-SNE maps (van der Maaten and Hinton, JMLR 2008), side by side. Colors
are decisions; no label is read.
"""

import io
from typing import NamedTuple

import numpy as np

POINTS = 1000  # images in a map
_LEAST = 10  # images; fewer make no map


class View(NamedTuple):
  """A network's features and decisions for some images."""

  features: np.ndarray  # f32[points, width]
  decisions: np.ndarray  # i32[points]


def sample(images: int) -> np.ndarray:
  """Return rows to show, evenly over a target of `images` images."""
  return np.linspace(0, images - 1, min(images, POINTS)).astype(np.int32)


def draw(before: View, after: View, names: tuple[str, ...]) -> bytes | None:
  """Return a PNG file, or None where there are too few images.

  Args:
    before: of the source network.
    after: of the adapted network.
    names: of the classes, or ().
  """
  if len(before.features) < _LEAST:
    return None
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4.6), dpi=110, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, 2)
  handles = {}
  for axis, view, title in zip(
    axes, (before, after), ("source network", "adapted network")
  ):
    points = _map(view.features)
    for label in np.unique(view.decisions):
      rows = view.decisions == label
      color = f"C{label % 10}"
      handles[label] = axis.scatter(*points[rows].T, s=6, c=color)
    axis.set(title=title, xticks=[], yticks=[])
  if len(handles) <= 20:
    shown = sorted(handles)
    text = [names[label] if names else str(label) for label in shown]
    figure.legend([handles[k] for k in shown], text, loc="outside right upper")  # type: ignore
  figure.suptitle("target images in feature space; colors are decisions")
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()


def _map(features):
  from sklearn.manifold import TSNE

  # Constant features have no neighbors to keep.
  spread = features + 1e-6 * np.random.default_rng(0).normal(
    size=features.shape
  )
  perplexity = min(30, (len(features) - 1) // 3)
  tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
  return tsne.fit_transform(spread)
