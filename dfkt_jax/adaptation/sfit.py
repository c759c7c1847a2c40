"""SFIT: show in images what adaptation has learned, and learn from them.

A translator G turns target images into images for which the source S predicts
what the adapted network T predicts for the originals. There are four stages:

  1 adapt      T by SHOT-IM: mean H(p_T(x)) - H(mean p_T(x))
  2 pretrain   G as the identity: KL(p_S(x) || p_S(G(x)))
               + w_id |G(x) - x|_1 + w_con |f_S(G(x)) - f_S(x)|_1
  3 translate  KL(p_T(x) || p_S(G(x))) + l_rp R(f_S(G(x)), f_T(x))
               + l_id |G(x) - x|_1 + l_tv TV(G(x)) + l_bn B(G(x))
  4 fine-tune  T as in 1, but the entropy of an image counts only if S for G(x)
               and T for x have the same decision

f is the last map before the features, |.|_1 is a mean over the values, R is
`relation.channels` (relationship preserving), and B is `statistics.style`
(BatchNorm inputs against the running ones of S). S never changes, and T changes
only in stages 1 and 4.

Hou and Zheng, "Visualizing Adapted Knowledge in Domain Transfer", CVPR 2021; B
is from their "Source Free Domain Adaptation with Image Translation", 2020, and
off as in released code. These follow released code: KL has no temperature; G
learns by Adam at a rate of 3e-4 with a cosine schedule; l_id and l_tv are 0.03
on digits; the rate of T is halved in stage 4, where entropy is gated, while the
text of the paper has a cross-entropy. Epochs are the released ones for digits:
30 of stage 1 (SHOT's), then 10, 30 and 30. For VisDA it has 45 epochs with
shares of 0.333, 0.111 and 0.444, for Office 130 epochs with shares of 0.115,
0.385 and 0.385.

These are our choice, or have not been checked:
  - l_rp, w_id and w_con, and the form of TV.
  - The entropy in stage 4 is a mean over the images that count, and the
    decision of T is that of its running statistics.
  - Images from G are in [0, 1] where l_id and l_tv weigh them.
  - One cosine spans stages 2 and 3. The rate of T falls over stages 1 and 4 as
    if nothing were between them.
  - Batches are of 64 images in all stages.
`label_weight` adds the pseudo-labels of SHOT to stages 1 and 4.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfkt_jax import network as net
from dfkt_jax.adaptation import shot
from dfkt_jax.adaptation.recipe import Recipe
from dfkt_jax.adaptation.shot import SHOT, UNKNOWN
from dfkt_jax.contracts import Context, NonNegative, Positive, Share
from dfkt_jax.devices import loops
from dfkt_jax.distillation import optimizers
from dfkt_jax.errors import UsageError
from dfkt_jax.losses import classification, image_prior, relation, statistics
from dfkt_jax.memory import feature_bank
from dfkt_jax.models import translator
from dfkt_jax.models.translator import TranslatorNetwork
from dfkt_jax.network import Network

ADAPT, PRETRAIN, TRANSLATE, FINE_TUNE = range(4)


class State(NamedTuple):
  """T and G."""

  adaptation: shot.State  # T; its train state counts the steps of all stages
  translator: TranslatorNetwork  # G
  translator_opt_state: optax.OptState


class Terms(NamedTuple):
  """Loss terms of G before weighting; 0 in stages in which G does not learn."""

  loss: jax.Array
  divergence: jax.Array  # KL
  relation: jax.Array
  identity: jax.Array
  content: jax.Array
  variation: jax.Array
  style: jax.Array


class Info(NamedTuple):
  """Loss terms before weighting, of T and of G."""

  loss: jax.Array  # of the network that learns in the stage
  stage: jax.Array  # 0 to 3
  agreement: jax.Array  # share of images with the same decision of S and T
  entropy: jax.Array
  marginal_entropy: jax.Array
  divergence: jax.Array
  relation: jax.Array
  identity: jax.Array
  content: jax.Array
  variation: jax.Array
  style: jax.Array


@dataclasses.dataclass(frozen=True)
class SFIT:
  """Hyper-parameters; defaults are the released ones for digits, or ours."""

  # Share of the steps that adapt by SHOT-IM.
  adapt_share: Annotated[float, Share] = 0.3
  # Share of the steps that pretrain the translator as the identity.
  pretrain_share: Annotated[float, Share] = 0.1
  # Share of the steps that translate; the rest fine-tunes.
  translate_share: Annotated[float, Share] = 0.3
  label_weight: Annotated[float, NonNegative] = 0.0  # of SHOT's pseudo-labels
  # Factor of --lr in fine-tuning.
  fine_tune_rate: Annotated[float, NonNegative] = 0.5
  # Channels of G's first layer.
  translator_width: Annotated[int, Positive] = 32
  translator_blocks: Annotated[int, NonNegative] = 3  # residual ones
  translator_lr: Annotated[float, NonNegative] = 3e-4  # of Adam
  pretrain_identity_weight: Annotated[float, NonNegative] = 1.0  # w_id (ours)
  pretrain_content_weight: Annotated[float, NonNegative] = 1.0  # w_con (ours)
  relation_weight: Annotated[float, NonNegative] = 1.0  # l_rp (ours)
  identity_weight: Annotated[float, NonNegative] = 0.03  # l_id
  variation_weight: Annotated[float, NonNegative] = 0.03  # l_tv
  style_weight: Annotated[float, NonNegative] = 0.0  # l_bn; needs BatchNorm

  recipe: ClassVar[Recipe] = Recipe(epochs=100, classifier_rate=0.0)

  def init(self, key: jax.Array, context: Context) -> State:
    """Return T as S, and a fresh G.

    Raises:
      UsageError: the shares exceed 1, a term needs BatchNorm and there is none,
        or images of this shape cannot be translated.
    """
    source, recipe = context.teacher, context.recipe
    self._check(source)
    g = translator.init(
      key, source.spec.shape, self.translator_width, self.translator_blocks
    )
    own = context._replace(recipe=self._own_recipe(recipe))
    adaptation = self._shot().init(key, own)
    return State(adaptation, g, self._optimizer(recipe).init(g.params))

  def relabel(self, key: jax.Array, state: State, context: Context) -> State:
    """Return the state with the pseudo-labels of a new epoch."""
    adaptation = self._shot().relabel(key, state.adaptation, context)
    return state._replace(adaptation=adaptation)

  def step(
    self, key: jax.Array, state: State, context: Context
  ) -> tuple[State, Info]:
    """Take a step of T or of G, depending on the stage."""
    source, images = context.teacher, context.batch.images
    stage = self.stage(context.progress)
    adapts = (stage == ADAPT) | (stage == FINE_TUNE)
    target = self.network(state)
    decisions = source.spec.task.decisions
    agree = decisions(
      net.logits(source, self.translate(state, images))
    ) == decisions(net.logits(target, images))

    zero = jnp.float32(0.0)
    adaptation, info = loops.cond(
      adapts,
      lambda state: self.adapt_step(
        key, state, context, stage, agree | (stage == ADAPT)
      ),
      (state.adaptation, shot.Info(*[zero] * 4)),
      state.adaptation,
    )
    g, opt_state, terms = loops.cond(
      ~adapts,
      lambda state: self.translator_step(state, context, stage),
      (
        state.translator,
        state.translator_opt_state,
        Terms(*[zero] * len(Terms._fields)),
      ),
      state,
    )
    step = state.adaptation.train.step + 1
    train = adaptation.train._replace(step=step)
    state = State(adaptation._replace(train=train), g, opt_state)
    return state, Info(
      info.loss + terms.loss,
      stage.astype(jnp.float32),
      agree.mean(),
      info.entropy,
      info.marginal_entropy,
      *terms[1:],
    )

  def network(self, state: State) -> Network:
    """Return T as it is."""
    return state.adaptation.train.network

  def translate(self, state: State, images: jax.Array) -> jax.Array:
    """Return target images in the style of the source, in [0, 1]."""
    return translator.translate(state.translator, images)

  def stage(self, progress: jax.Array) -> jax.Array:
    """Return the stage after a share of the steps, i32[] in 0 to 3."""
    ends = jnp.cumsum(
      jnp.array([self.adapt_share, self.pretrain_share, self.translate_share])
    )
    # A sum of shares is rounded: without a margin a stage may begin late.
    return (progress >= ends - 1e-6).sum()

  def translator_loss(
    self,
    source: Network,
    target: Network,
    images: jax.Array,
    translated: jax.Array,
    stage: jax.Array,
  ) -> Terms:
    """Return the loss of G.

    Args:
      images: f32[batch, height, width, channels].
      translated: G of the images, in their shape.
      stage: i32[], PRETRAIN or TRANSLATE.
    """
    early = stage == PRETRAIN
    logits, taps = net.features(source, translated)
    own_logits, own_taps = net.features(source, images)
    target_logits, target_taps = net.features(target, images)
    last = last_map(taps)
    wanted = jnp.where(early, own_logits, target_logits)
    terms = Terms(
      jnp.float32(0.0),
      classification.kl(wanted, logits).mean(),
      relation.channels(taps[last], target_taps[last]).mean(),
      jnp.abs(translated - images).mean(),
      jnp.abs(taps[last] - own_taps[last]).mean(),
      image_prior.total_variation_l1(translated),
      self._style(source, translated),
    )
    pretrain = (
      self.pretrain_identity_weight * terms.identity
      + self.pretrain_content_weight * terms.content
    )
    translate = (
      self.relation_weight * terms.relation
      + self.identity_weight * terms.identity
      + self.variation_weight * terms.variation
      + self.style_weight * terms.style
    )
    others = jnp.where(early, pretrain, translate)
    return terms._replace(loss=terms.divergence + others)

  def adapt_step(
    self,
    key: jax.Array,
    state: shot.State,
    context: Context,
    stage: jax.Array,
    counts: jax.Array,
  ) -> tuple[shot.State, shot.Info]:
    """Take a step of SHOT on the images that count, bool[batch]."""
    rows = context.batch.rows
    labels = feature_bank.read(state.labels, rows)
    labels = jnp.where(counts, labels, UNKNOWN)
    gated = feature_bank.write(state.labels, rows, labels)
    rate = jnp.where(stage == FINE_TUNE, self.fine_tune_rate, 1.0)
    own = context._replace(recipe=self._own_recipe(context.recipe, rate))
    after, info = self._shot().step(key, state._replace(labels=gated), own)
    return after._replace(labels=state.labels), info

  def translator_step(
    self, state: State, context: Context, stage: jax.Array
  ) -> tuple[TranslatorNetwork, optax.OptState, Terms]:
    """Take a step of G."""
    g, images = state.translator, context.batch.images

    def loss(params):
      moved = dataclasses.replace(g, params=params)
      translated = translator.translate(moved, images)
      terms = self.translator_loss(
        context.teacher, self.network(state), images, translated, stage
      )
      return terms.loss, terms

    gradient, terms = jax.grad(loss, has_aux=True)(g.params)
    updates, opt_state = self._optimizer(context.recipe).update(
      gradient, state.translator_opt_state, g.params
    )
    params = optax.apply_updates(g.params, updates)
    return dataclasses.replace(g, params=params), opt_state, terms

  def _style(self, source, translated):
    if not self.style_weight:
      return jnp.float32(0.0)
    _, taps = net.statistics(source, translated)
    return statistics.style(taps, source.batch_stats)

  def _shot(self):
    return SHOT(label_weight=self.label_weight)

  def _own_recipe(self, recipe, rate: Any = 1.0):
    """Return the recipe of T: its rate falls over the steps that train T.

    `rate` may be traced; such a recipe cannot cross the boundary of a `jit`.
    """
    steps = _share(recipe, 1.0 - self.pretrain_share - self.translate_share)
    return dataclasses.replace(recipe, steps=steps, lr=recipe.lr * rate)

  def _optimizer(self, recipe):
    steps = _share(recipe, self.pretrain_share + self.translate_share)
    return optimizers.make("adam", self.translator_lr, steps, 0.0, 0.0)

  def _check(self, source):
    shares = self.adapt_share + self.pretrain_share + self.translate_share
    if shares > 1.0 + 1e-6:
      raise UsageError(
        "--adapt-share, --pretrain-share and --translate-share are"
        f" {shares:.3g} together: give 1 or less"
      )
    if self.style_weight and not source.batch_stats:
      raise UsageError(
        f"--style-weight compares BatchNorm statistics and"
        f" {type(source.module).__name__} has no BatchNorm: give a source that"
        " has, or --style-weight 0"
      )


def last_map(taps: dict[str, jax.Array]) -> str:
  """Return the name of the last of a network's intermediates that is a map."""
  maps = [name for name, tap in taps.items() if tap.ndim == 4]
  return max(maps, key=lambda name: (len(name), name))  # stage10 after stage9


def _share(recipe, share):
  return max(1, round(share * recipe.steps))
